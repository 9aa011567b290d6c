//! Kubernetes' side of containerd: calls of its Container Runtime Interface as the kubelet makes them. They are JSON here
//! (protobuf's mapping to it), and gRPC on containerd's socket: a message with its length before it in an HTTP/2 request,
//! which curl makes.

use std::path::PathBuf;
use std::process::Command;

use protobuf::reflect::FileDescriptor;
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use super::BUSYBOX;
use crate::command::{eventually, finish};

/// The bytes before a message: whether it is compressed, and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// A client.
#[derive(Debug)]
pub struct Cri {
    socket: PathBuf,
    messages: FileDescriptor,
    directory: TempDir,
}

impl Cri {
    pub(super) fn new(socket: PathBuf) -> Self {
        let directory = TempDir::with_prefix("cri-").expect("temporary directory");
        let path = directory.path().join("cri.proto");
        std::fs::write(&path, include_str!("cri.proto")).expect("file");
        let parsed = protobuf_parse::Parser::new()
            .pure()
            .include(directory.path())
            .input(&path)
            .parse_and_typecheck()
            .expect("cri.proto");
        let [file] = &parsed.file_descriptors[..] else {
            panic!("cri.proto includes no other");
        };
        let messages = FileDescriptor::new_dynamic(file.clone(), &[]).expect("cri.proto");
        let cri = Self {
            socket,
            messages,
            directory,
        };
        let image = json!({ "image": { "image": BUSYBOX } });
        let has_image = || !cri.of_images("ImageStatus", &image)["image"].is_null();
        assert!(eventually(has_image), "containerd has no {BUSYBOX}");
        cri
    }

    /// Makes a call of the runtime service that must succeed.
    ///
    /// # Panics
    /// It fails, or is not in cri.proto.
    #[track_caller]
    pub fn call(&self, method: &str, request: &Value) -> Value {
        self.try_call(method, request)
            .unwrap_or_else(|message| panic!("{method} {request}: {message}"))
    }

    /// Makes a call of the runtime service, and gives the answer or why it failed.
    ///
    /// # Errors
    /// The call fails.
    ///
    /// # Panics
    /// It is not in cri.proto, or containerd does not answer as gRPC has it.
    #[track_caller]
    pub fn try_call(&self, method: &str, request: &Value) -> Result<Value, String> {
        self.request("RuntimeService", method, request)
    }

    #[track_caller]
    fn of_images(&self, method: &str, request: &Value) -> Value {
        self.request("ImageService", method, request)
            .unwrap_or_else(|message| panic!("{method} {request}: {message}"))
    }

    #[track_caller]
    fn request(&self, service: &str, method: &str, request: &Value) -> Result<Value, String> {
        let message = |kind: &str| {
            let name = format!("{method}{kind}");
            let found = self.messages.message_by_package_relative_name(&name);
            found.unwrap_or_else(|| panic!("cri.proto has no {name}"))
        };
        let request =
            protobuf_json_mapping::parse_dyn_from_str(&message("Request"), &request.to_string())
                .expect("a request");
        let bytes = request.write_to_bytes_dyn().expect("a request");
        let length = u32::try_from(bytes.len()).expect("a short request");
        let body = [&[0], &length.to_be_bytes()[..], &bytes].concat();

        // curl writes trailers behind the headers.
        let headers = NamedTempFile::new_in(&self.directory).expect("temporary file");
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--http2-prior-knowledge", "--data-binary", "@-"])
            .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
            .arg("--unix-socket")
            .arg(&self.socket)
            .arg("--dump-header")
            .arg(headers.path())
            .arg(format!("http://localhost/runtime.v1.{service}/{method}"));
        let answer = finish(&mut curl, body).expect(0).stdout;
        let headers = std::fs::read_to_string(headers.path()).expect("headers");
        let header = |name: &str| {
            let mut lines = headers.lines();
            lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
        };
        if header("grpc-status:").as_deref() != Some("0") {
            return Err(header("grpc-message:").unwrap_or(headers));
        }
        let response = message("Response")
            .parse_from_bytes(&answer[PREFIX..])
            .expect("an answer");
        let response =
            protobuf_json_mapping::print_to_string(&*response).expect("an answer without bytes");
        Ok(serde_json::from_str(&response).expect("JSON"))
    }

    /// Runs a shell script in a container, as probes do; gives its exit code and its standard output.
    ///
    /// # Panics
    /// It cannot be run.
    #[track_caller]
    #[must_use]
    pub fn exec(&self, container: &str, script: &str) -> (i64, String) {
        let request =
            json!({ "containerId": container, "cmd": ["sh", "-c", script], "timeout": "120" });
        let answer = self.call("ExecSync", &request);
        let text = answer["stdout"].as_str().unwrap_or_default();
        (
            answer["exitCode"].as_i64().unwrap_or_default(),
            text.to_owned(),
        )
    }

    /// The same, which must succeed.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn exec_ok(&self, container: &str, script: &str) -> String {
        let (code, text) = self.exec(container, script);
        assert_eq!(code, 0, "{script}: {text}");
        text
    }
}
