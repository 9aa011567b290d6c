//! `start`: makes the process that serves, or finds the one of the container's pod, and tells containerd its address.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use hull_runtime::own_program;
use protobuf::Message;
use sha2::{Digest, Sha256};

use crate::arguments::Arguments;
use crate::options::Options;

/// Where containerd's shims have their sockets.
const SOCKETS: &str = "/run/containerd/s";
/// The file of a bundle that has the runtime options, for what serves.
pub(crate) const OPTIONS_FILE: &str = "runtime-options";
/// The file of a bundle that has the address of its shim.
const ADDRESS_FILE: &str = "address";
/// The variable of the environment with the address that events go to.
pub(crate) const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";
/// The variable with the newest version of the task service that containerd speaks; 1.6 does not set it.
const MAX_VERSION: &str = "MAX_SHIM_VERSION";
/// Annotations that name the pod of a container, whose containers share a shim.
const GROUPS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];
/// The most that is read of what containerd says, in bytes.
const MAX_INPUT: u64 = 10 << 20;

/// How containerd is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The address as text, which stands for version 2: containerd 1.6 and 1.7.
    Text,
    /// JSON with the version: containerd 2.0 to 2.2.
    Json,
    /// A message: containerd 2.3.
    Message,
}

/// Runs in the bundle. Gives what is to be printed.
pub(crate) fn start(arguments: &Arguments) -> anyhow::Result<Vec<u8>> {
    let (parameters, options) = parameters(arguments)?;
    fs::write(OPTIONS_FILE, options).context(OPTIONS_FILE)?;
    let events = match &parameters {
        Some(parameters) => parameters.containerd_ttrpc_address.clone(),
        None => std::env::var(TTRPC_ADDRESS).context(TTRPC_ADDRESS)?,
    };
    let directory = parameters
        .as_ref()
        .and_then(|parameters| parameters.socket_dir.as_deref())
        .filter(|directory| !directory.is_empty())
        .unwrap_or(SOCKETS);
    let group = group(Path::new("."), &arguments.id)?;
    let socket = Path::new(directory).join(socket_name(arguments, &group));
    if let Some(listener) = listen(&socket)?
        && let Err(error) = spawn(arguments, listener, &events)
    {
        // Nobody will listen there.
        let _ = fs::remove_file(&socket);
        return Err(error);
    }
    let address = format!("unix://{}", socket.display());
    fs::write(ADDRESS_FILE, &address).context(ADDRESS_FILE)?;
    let newest = std::env::var(MAX_VERSION);
    let newest = newest.ok().and_then(|version| version.parse().ok());
    encode(answer_for(parameters.is_some(), newest), &address)
}

fn answer_for(has_parameters: bool, newest: Option<u32>) -> Answer {
    match newest {
        _ if has_parameters => Answer::Message,
        Some(3..) => Answer::Json,
        _ => Answer::Text,
    }
}

fn encode(answer: Answer, address: &str) -> anyhow::Result<Vec<u8>> {
    Ok(match answer {
        Answer::Text => address.into(),
        Answer::Json => serde_json::to_vec(&serde_json::json!({
            "version": 3, "address": address, "protocol": "ttrpc",
        }))?,
        Answer::Message => {
            let mut result = BootstrapResult::new();
            result.version = 3;
            result.address = address.into();
            result.protocol = "ttrpc".into();
            result.write_to_bytes()?
        }
    })
}

/// What containerd 2.3 says on standard input. Older ones put runtime options there, which come again with Create but not
/// with CreateSandbox, and which are told apart by the id and the namespace.
fn parameters(arguments: &Arguments) -> anyhow::Result<(Option<BootstrapParams>, Vec<u8>)> {
    let mut input = Vec::new();
    if !io::stdin().is_terminal() {
        let stdin = io::stdin().lock();
        stdin
            .take(MAX_INPUT)
            .read_to_end(&mut input)
            .context("standard input")?;
    }
    Ok(match parse_parameters(&input, arguments) {
        Some(parameters) => {
            let options = runtime_options(&parameters)?;
            (Some(parameters), options)
        }
        None => (None, input),
    })
}

/// The runtime options among the extensions, as older versions of containerd write them.
fn runtime_options(parameters: &BootstrapParams) -> anyhow::Result<Vec<u8>> {
    let mut values = parameters
        .extensions
        .iter()
        .map(|extension| &extension.value);
    let options = values.find(|value| Options::is_known(&value.type_url));
    Ok(match options.and_then(|value| value.as_ref()) {
        Some(options) => options.write_to_bytes()?,
        None => Vec::new(),
    })
}

fn parse_parameters(input: &[u8], arguments: &Arguments) -> Option<BootstrapParams> {
    let parameters = BootstrapParams::parse_from_bytes(input).ok()?;
    let is_for_this =
        parameters.instance_id == arguments.id && parameters.namespace == arguments.namespace;
    is_for_this.then_some(parameters)
}

/// The pod of the container whose bundle is `bundle`, or itself. A pod that no container holds has no configuration there.
pub(crate) fn group(bundle: &Path, id: &str) -> anyhow::Result<String> {
    let path = bundle.join("config.json");
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(id.to_owned()),
        text => text.with_context(|| path.display().to_string())?,
    };
    let config: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let named = GROUPS
        .iter()
        .find_map(|name| config["annotations"][name].as_str())
        .filter(|group| !group.is_empty());
    Ok(named.unwrap_or(id).to_owned())
}

/// The same for the same pod of the same containerd, and short, as the path of a socket must be.
fn socket_name(arguments: &Arguments, group: &str) -> String {
    let name: PathBuf = [&arguments.address, &arguments.namespace, group]
        .iter()
        .collect();
    Sha256::digest(name.as_os_str().as_encoded_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A socket that listens at `path`; none if somebody does so already.
fn listen(path: &Path) -> anyhow::Result<Option<UnixListener>> {
    let context = || path.display().to_string();
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(context)?;
    }
    match UnixListener::bind(path) {
        Ok(listener) => return Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        Err(error) => return Err(error).with_context(context),
    }
    if UnixStream::connect(path).is_ok() {
        return Ok(None);
    }
    // That of a shim that was killed.
    fs::remove_file(path).with_context(context)?;
    UnixListener::bind(path).map(Some).with_context(context)
}

/// Removes the socket of a shim, of which the bundle has the address, if nobody listens there any more.
pub(crate) fn remove_dead_socket(bundle: &Path) {
    let Ok(address) = fs::read_to_string(bundle.join(ADDRESS_FILE)) else {
        return;
    };
    let path = Path::new(address.strip_prefix("unix://").unwrap_or(&address));
    if UnixStream::connect(path).is_err() {
        // It may be gone already.
        let _ = fs::remove_file(path);
    }
}

/// Runs this program once more, to serve at `listener`, which is its standard input.
fn spawn(arguments: &Arguments, listener: UnixListener, events: &str) -> anyhow::Result<()> {
    if events.is_empty() {
        bail!("containerd does not say where events go");
    }
    let mut command = own_program::command();
    command
        .arg0(crate::NAME)
        .args(["-namespace", &arguments.namespace])
        .args(["-id", &arguments.id])
        .args(["-address", &arguments.address])
        .env(TTRPC_ADDRESS, events)
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A terminal's signals are not for it.
        .process_group(0);
    if arguments.debug {
        command.arg("-debug");
    }
    command.spawn().context("run the shim")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> Arguments {
        Arguments {
            namespace: "default".into(),
            id: "c1".into(),
            address: "/run/containerd/containerd.sock".into(),
            ..Arguments::default()
        }
    }

    #[test]
    fn each_containerd_gets_the_answer_that_it_understands() {
        for (has_parameters, newest, answer) in [
            (false, None, Answer::Text),
            (false, Some(2), Answer::Text),
            (false, Some(3), Answer::Json),
            (true, Some(3), Answer::Message),
        ] {
            assert_eq!(answer_for(has_parameters, newest), answer);
        }
        assert_eq!(encode(Answer::Text, "unix:///s").unwrap(), b"unix:///s");
        let json: serde_json::Value =
            serde_json::from_slice(&encode(Answer::Json, "unix:///s").unwrap()).unwrap();
        assert_eq!(json["version"], 3);
        assert_eq!(json["address"], "unix:///s");
        let message = encode(Answer::Message, "unix:///s").unwrap();
        let message = BootstrapResult::parse_from_bytes(&message).unwrap();
        assert_eq!((message.version, &*message.protocol), (3, "ttrpc"));
    }

    #[test]
    fn parameters_are_told_from_runtime_options() {
        let mut parameters = BootstrapParams::new();
        parameters.instance_id = "c1".into();
        parameters.namespace = "default".into();
        parameters.containerd_ttrpc_address = "/t".into();
        let bytes = parameters.write_to_bytes().unwrap();
        let parsed = parse_parameters(&bytes, &arguments()).unwrap();
        assert_eq!(parsed.containerd_ttrpc_address, "/t");
        // The two fields of an Any have the same numbers.
        parameters.instance_id = "containerd.runc.v1.Options".into();
        let bytes = parameters.write_to_bytes().unwrap();
        assert!(parse_parameters(&bytes, &arguments()).is_none());
        assert!(parse_parameters(b"", &arguments()).is_none());
    }

    #[test]
    fn the_containers_of_a_pod_have_one_shim() {
        let bundle = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(bundle.path().join("config.json"), text).unwrap();
        write(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod1"}}"#);
        assert_eq!(group(bundle.path(), "c1").unwrap(), "pod1");
        write("{}");
        assert_eq!(group(bundle.path(), "c1").unwrap(), "c1");
        assert_ne!(
            socket_name(&arguments(), "c1"),
            socket_name(&arguments(), "pod1")
        );
        assert_eq!(socket_name(&arguments(), "c1").len(), 64);
    }

    #[test]
    fn the_socket_of_a_dead_shim_is_taken_over_and_that_of_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s/socket");
        let listener = listen(&path).unwrap().unwrap();
        assert!(listen(&path).unwrap().is_none());
        drop(listener);
        assert!(listen(&path).unwrap().is_some());
    }
}
