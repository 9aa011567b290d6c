//! Generates the messages and the ttrpc service from `proto/agent.proto`; no protoc is needed.

use std::path::Path;

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() {
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo::rerun-if-changed=proto/agent.proto");
    Codegen::new()
        .out_dir(Path::new(&out))
        .input("proto/agent.proto")
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize {
            async_server: true,
            async_client: false,
            ..Default::default()
        })
        .run()
        .expect("agent.proto compiles");
    // The generated files open with inner attributes, which a file that is included cannot have.
    for name in ["agent.rs", "agent_ttrpc.rs"] {
        let path = Path::new(&out).join(name);
        let text = std::fs::read_to_string(&path).expect("generated");
        let text: String = text
            .lines()
            .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(&path, text).expect("OUT_DIR is writable");
    }
}
