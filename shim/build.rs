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
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()
        .expect("pod.proto compiles");
    // The generated file opens with inner attributes, which a file that is included cannot have.
    let path = Path::new(&out).join("pod.rs");
    let text = std::fs::read_to_string(&path).expect("generated");
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&path, text).expect("OUT_DIR is writable");
}
