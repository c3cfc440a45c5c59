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
        // Written by hand in src/pb/debug.rs: what they hold is secret, or may be large.
        .skip_debug(UNSHOWN)
        .build_server(std::env::var_os("CARGO_FEATURE_FAKE").is_some())
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}

const UNSHOWN: [&str; 11] = [
    ".authpb.User",
    ".etcdserverpb.AuthUserAddRequest",
    ".etcdserverpb.AuthUserChangePasswordRequest",
    ".etcdserverpb.AuthenticateRequest",
    ".etcdserverpb.AuthenticateResponse",
    ".etcdserverpb.Compare",
    ".etcdserverpb.PutRequest",
    ".etcdserverpb.SnapshotResponse",
    ".mvccpb.KeyValue",
    ".v3electionpb.CampaignRequest",
    ".v3electionpb.ProclaimRequest",
];
