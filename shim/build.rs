//! Generates the messages of `proto/pod.proto`; no protoc is needed.

use std::path::Path;

use ttrpc_codegen::{Codegen, ProtobufCustomize};

fn main() {
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo::rerun-if-changed=proto/pod.proto");
    Codegen::new()
        .out_dir(Path::new(&out))
        .input("proto/pod.proto")
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
        .run()
        .expect("pod.proto compiles");
}
