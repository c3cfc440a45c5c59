//! Our wire definitions, held against the descriptors of etcd's own published modules.
//!
//! Both sides say the same facts in the same lines (see `proto/tool`): `message`, `field`, `enum`
//! and `rpc`. A number, type, label or name that differs shows as one line less and one more.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use crate::support::count::STREAMS;

#[test]
#[ignore = "needs Go: it reads etcd's modules"]
fn our_descriptors_are_etcds() {
    let ours = facts(&compile());
    let theirs: BTreeSet<String> = proto_tool(&["-describe"]).lines().map(str::to_owned).collect();
    assert!(theirs.len() > 400, "hardly etcd's API: {} facts", theirs.len());

    let missing = theirs.difference(&ours).map(|line| format!("- {line}"));
    let extra = ours.difference(&theirs).map(|line| format!("+ {line}"));
    let diff: Vec<String> = missing.chain(extra).collect();
    assert!(diff.is_empty(), "proto/ (+) is not etcd's (-):\n{}", diff.join("\n"));
}

#[test]
#[ignore = "needs Go: it reads etcd's modules"]
fn proto_is_what_the_tool_writes() {
    // Under target, where what a killed test leaves is nobody's litter.
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("proto");
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir_all(&out).expect("a folder can be made");
    proto_tool(&["-out", &out.display().to_string()]);

    let committed = protos(&root().join("proto"));
    assert_eq!(protos(&out), committed, "proto/ has other files than the tool writes");
    for name in committed {
        let read = |dir: &Path| std::fs::read_to_string(dir.join(&name)).expect("readable");
        let (ours, fresh) = (read(&root().join("proto")), read(&out));
        assert!(ours == fresh, "proto/{name} is not what `go run . -out ..` in proto/tool writes");
    }
}

/// The counter of RPCs keeps the long streams apart by a list, which must be all of them.
#[test]
fn the_counter_knows_every_stream() {
    let streaming: Vec<String> = facts(&compile())
        .iter()
        .filter(|line| line.starts_with("rpc ") && line.contains("(true ."))
        .filter_map(|line| {
            let mut words = line.split([' ', '(']).skip(1);
            Some(format!("/{}/{}", words.next()?, words.next()?))
        })
        .collect();
    assert_eq!(streaming, STREAMS);
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn compile() -> FileDescriptorSet {
    let files = ["rpc.proto", "lock.proto", "election.proto"];
    protox::compile(files, [root().join("proto")]).expect("proto/ compiles")
}

fn proto_tool(args: &[&str]) -> String {
    let output = Command::new("go")
        .args(["run", "."])
        .args(args)
        .current_dir(root().join("proto/tool"))
        .output()
        .expect("Go is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The names of the definitions in a folder.
fn protos(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().display().to_string());
    names.filter(|name| name.ends_with(".proto")).collect()
}

fn facts(set: &FileDescriptorSet) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for file in &set.file {
        let package = file.package();
        for message in &file.message_type {
            message_facts(package, message, &mut lines);
        }
        for enumeration in &file.enum_type {
            enum_facts(package, enumeration, &mut lines);
        }
        for service in &file.service {
            for rpc in &service.method {
                lines.insert(format!(
                    "rpc {package}.{} {}({} {}) ({} {})",
                    service.name(),
                    rpc.name(),
                    rpc.client_streaming(),
                    rpc.input_type(),
                    rpc.server_streaming(),
                    rpc.output_type(),
                ));
            }
        }
    }
    lines
}

fn message_facts(scope: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{scope}.{}", message.name());
    lines.insert(format!("message {name}"));
    for field in &message.field {
        let oneof = match field.oneof_index {
            Some(index) => message.oneof_decl[index as usize].name(),
            None => "-",
        };
        lines.insert(format!(
            "field {name} {} = {} {} {} oneof {oneof}",
            field.name(),
            field.number(),
            label(field),
            type_name(field),
        ));
    }
    for enumeration in &message.enum_type {
        enum_facts(&name, enumeration, lines);
    }
    for nested in &message.nested_type {
        message_facts(&name, nested, lines);
    }
}

fn enum_facts(scope: &str, enumeration: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for value in &enumeration.value {
        let (name, value, number) = (enumeration.name(), value.name(), value.number());
        lines.insert(format!("enum {scope}.{name} {value} = {number}"));
    }
}

fn label(field: &FieldDescriptorProto) -> &'static str {
    match field.label() {
        Label::Optional => "optional",
        Label::Required => "required",
        Label::Repeated => "repeated",
    }
}

/// `.package.Name` of a message or enum, else the name that definitions use.
fn type_name(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum | Type::Group => field.type_name().to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}
