//! Compiles etcd's wire definitions into message types, clients and (for the fake) servers.
//! protox reads the definitions in Rust: no protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["proto/rpc.proto", "proto/lock.proto", "proto/election.proto"];
    println!("cargo:rerun-if-changed=proto");

    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::pb::codec::SmallBuffers")
        .build_server(std::env::var_os("CARGO_FEATURE_FAKE").is_some())
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
