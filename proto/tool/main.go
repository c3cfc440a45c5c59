// Command proto-tool writes etcd's wire definitions, or their descriptors.
//
//	go run . -out ..            writes the .proto files of this folder's parent
//	go run . -describe          prints one line a fact, for the test that compares them
//
// The facts come from the descriptors that the published Go modules register:
// message and field names, numbers, types, labels, enums and services. Options
// (gateway routes, swagger, version marks), reserved numbers and comments are
// not carried over. For another version of etcd: go get it, run, and read the diff.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sort"
	"strings"

	_ "go.etcd.io/etcd/api/v3/etcdserverpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// packages names what we take, and the file each is written to.
var packages = map[protoreflect.FullName]string{
	"mvccpb":       "mvcc.proto",
	"authpb":       "auth.proto",
	"etcdserverpb": "rpc.proto",
	"v3lockpb":     "lock.proto",
	"v3electionpb": "election.proto",
}

func main() {
	out := flag.String("out", "", "folder to write the definitions to")
	describe := flag.Bool("describe", false, "print the descriptors as lines")
	flag.Parse()

	files := collect()
	switch {
	case *describe:
		var lines []string
		for _, f := range files {
			lines = append(lines, facts(f)...)
		}
		sort.Strings(lines)
		fmt.Println(strings.Join(lines, "\n"))
	case *out != "":
		for _, f := range files {
			path := filepath.Join(*out, packages[f.Package()])
			if err := os.WriteFile(path, definition(f), 0o644); err != nil {
				log.Fatal(err)
			}
		}
	default:
		flag.Usage()
		os.Exit(2)
	}
}

// collect finds the registered files that hold our packages.
func collect() []protoreflect.FileDescriptor {
	var files []protoreflect.FileDescriptor
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		_, ours := packages[f.Package()]
		if ours && (f.Package() != "etcdserverpb" || f.Services().Len() > 0) {
			files = append(files, f)
		}
		return true
	})
	sort.Slice(files, func(i, j int) bool { return files[i].Package() < files[j].Package() })
	if len(files) != len(packages) {
		log.Fatalf("found %d of %d packages: %v", len(files), len(packages), files)
	}
	return files
}

// typeName is the type as definitions write it, with the full name of what is not a scalar.
func typeName(f protoreflect.FieldDescriptor) string {
	switch {
	case f.Message() != nil:
		return "." + string(f.Message().FullName())
	case f.Enum() != nil:
		return "." + string(f.Enum().FullName())
	default:
		return f.Kind().String()
	}
}

// facts says what the wire depends on, one line each.
func facts(f protoreflect.FileDescriptor) []string {
	var lines []string
	var enum func(protoreflect.EnumDescriptor)
	var message func(protoreflect.MessageDescriptor)
	enum = func(e protoreflect.EnumDescriptor) {
		for i := range e.Values().Len() {
			v := e.Values().Get(i)
			lines = append(lines, fmt.Sprintf("enum %s %s = %d", e.FullName(), v.Name(), v.Number()))
		}
	}
	message = func(m protoreflect.MessageDescriptor) {
		lines = append(lines, fmt.Sprintf("message %s", m.FullName()))
		for i := range m.Fields().Len() {
			fd := m.Fields().Get(i)
			oneof := "-"
			if o := fd.ContainingOneof(); o != nil {
				oneof = string(o.Name())
			}
			lines = append(lines, fmt.Sprintf("field %s %s = %d %s %s oneof %s",
				m.FullName(), fd.Name(), fd.Number(), fd.Cardinality(), typeName(fd), oneof))
		}
		for i := range m.Enums().Len() {
			enum(m.Enums().Get(i))
		}
		for i := range m.Messages().Len() {
			message(m.Messages().Get(i))
		}
	}
	for i := range f.Enums().Len() {
		enum(f.Enums().Get(i))
	}
	for i := range f.Messages().Len() {
		message(f.Messages().Get(i))
	}
	for i := range f.Services().Len() {
		s := f.Services().Get(i)
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			lines = append(lines, fmt.Sprintf("rpc %s %s(%v .%s) (%v .%s)", s.FullName(), m.Name(),
				m.IsStreamingClient(), m.Input().FullName(), m.IsStreamingServer(), m.Output().FullName()))
		}
	}
	return lines
}

// definition writes one file in proto3.
func definition(f protoreflect.FileDescriptor) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "// Made by proto/tool from the descriptors of %s; do not edit.\n", origin(f))
	fmt.Fprintf(&b, "syntax = \"proto3\";\n\npackage %s;\n", f.Package())

	imports := map[string]bool{}
	need := func(d protoreflect.Descriptor) {
		if p := d.ParentFile().Package(); p != f.Package() {
			imports[packages[p]] = true
		}
	}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			if d := m.Fields().Get(i).Message(); d != nil {
				need(d)
			} else if d := m.Fields().Get(i).Enum(); d != nil {
				need(d)
			}
		}
		for i := range m.Messages().Len() {
			walk(m.Messages().Get(i))
		}
	}
	for i := range f.Messages().Len() {
		walk(f.Messages().Get(i))
	}
	if len(imports) > 0 {
		b.WriteString("\n")
		for _, path := range slices.Sorted(maps.Keys(imports)) {
			fmt.Fprintf(&b, "import %q;\n", path)
		}
	}
	for i := range f.Services().Len() {
		service(&b, f.Services().Get(i))
	}
	for i := range f.Enums().Len() {
		b.WriteString("\n")
		enumeration(&b, f.Enums().Get(i), "")
	}
	for i := range f.Messages().Len() {
		b.WriteString("\n")
		message(&b, f.Messages().Get(i), "")
	}
	return b.Bytes()
}

func service(b *bytes.Buffer, s protoreflect.ServiceDescriptor) {
	stream := func(yes bool) string {
		if yes {
			return "stream "
		}
		return ""
	}
	fmt.Fprintf(b, "\nservice %s {\n", s.Name())
	for i := range s.Methods().Len() {
		m := s.Methods().Get(i)
		fmt.Fprintf(b, "  rpc %s(%s.%s) returns (%s.%s);\n", m.Name(),
			stream(m.IsStreamingClient()), m.Input().FullName(),
			stream(m.IsStreamingServer()), m.Output().FullName())
	}
	b.WriteString("}\n")
}

func enumeration(b *bytes.Buffer, e protoreflect.EnumDescriptor, indent string) {
	fmt.Fprintf(b, "%senum %s {\n", indent, e.Name())
	for i := range e.Values().Len() {
		v := e.Values().Get(i)
		fmt.Fprintf(b, "%s  %s = %d;\n", indent, v.Name(), v.Number())
	}
	fmt.Fprintf(b, "%s}\n", indent)
}

func message(b *bytes.Buffer, m protoreflect.MessageDescriptor, indent string) {
	fmt.Fprintf(b, "%smessage %s {\n", indent, m.Name())
	for i := range m.Enums().Len() {
		enumeration(b, m.Enums().Get(i), indent+"  ")
	}
	for i := range m.Messages().Len() {
		message(b, m.Messages().Get(i), indent+"  ")
	}
	open := ""
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		in := ""
		if o := f.ContainingOneof(); o != nil {
			in = string(o.Name())
		}
		if open != "" && open != in {
			fmt.Fprintf(b, "%s  }\n", indent)
		}
		if in != "" && open != in {
			fmt.Fprintf(b, "%s  oneof %s {\n", indent, in)
		}
		open = in
		pad := ""
		if in != "" {
			pad = "  "
		}
		label := ""
		if f.IsList() {
			label = "repeated "
		}
		if f.IsMap() || f.HasOptionalKeyword() {
			log.Fatalf("%s: maps and optional fields are not written yet", f.FullName())
		}
		fmt.Fprintf(b, "%s  %s%s%s %s = %d;\n", indent, pad, label, typeName(f), f.Name(), f.Number())
	}
	if open != "" {
		fmt.Fprintf(b, "%s  }\n", indent)
	}
	fmt.Fprintf(b, "%s}\n", indent)
}

// origin names the module and version a file came from.
func origin(f protoreflect.FileDescriptor) string {
	module := "go.etcd.io/etcd/api/v3"
	if f.Package() == "v3lockpb" || f.Package() == "v3electionpb" {
		module = "go.etcd.io/etcd/server/v3"
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == module {
				return d.Path + " " + d.Version
			}
		}
	}
	return module
}
