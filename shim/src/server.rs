//! The process that serves: it lives from the first container of a pod to the last.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::{Task, create_task};
use hull_runtime::logging::LogSettings;
use nix::unistd::dup2_stdin;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::arguments::Arguments;
use crate::bootstrap::{OPTIONS_FILE, TTRPC_ADDRESS};
use crate::events::Publisher;
use crate::sandbox::SandboxService;
use crate::service::TaskService;

/// The FIFO of a bundle that containerd reads the shim's messages from.
const LOG: &str = "log";
/// The service's name as the generated code has it, and its older name: the messages are the same.
const SERVICES: [&str; 2] = ["containerd.task.v3.Task", "containerd.task.v2.Task"];
/// How long the answer to the last call may take to get out.
const PARTING: Duration = Duration::from_millis(100);
/// How long containerd may take to take the last events.
const EVENTS_LIMIT: Duration = Duration::from_secs(10);

/// Serves at the socket that is this process's standard input, in the bundle of the first container.
pub(crate) fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let listener = take_listener()?;
    if let Some(log) = open_log(Path::new(LOG)).context(LOG)? {
        let settings = LogSettings {
            path: Some(LOG.into()),
            json: false,
            debug: arguments.debug,
        };
        settings.init_to(log);
    }
    let options = runtime_options(Path::new(OPTIONS_FILE)).context(OPTIONS_FILE)?;
    std::env::set_current_dir("/").context("/")?;
    let events = std::env::var(TTRPC_ADDRESS).context(TTRPC_ADDRESS)?;
    let socket = listener.local_addr().context("the socket's address")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("make threads")?;
    let served = runtime.block_on(run(listener, &arguments.namespace, &events, options));
    // A thread that still carries a terminal's bytes has nobody to carry them for.
    runtime.shutdown_background();
    if let Some(path) = socket.as_pathname() {
        // It may have been removed.
        let _ = std::fs::remove_file(path);
    }
    served
}

async fn run(
    listener: UnixListener,
    namespace: &str,
    events: &str,
    options: Option<Any>,
) -> anyhow::Result<()> {
    let (publisher, sending) = Publisher::start(events, namespace);
    let publisher = Arc::new(publisher);
    let service = Arc::new(TaskService::new(namespace, Arc::clone(&publisher)));
    let listener = Listener::try_from(listener).context("serve the socket")?;
    let sandboxes = SandboxService::new(namespace, options, Arc::clone(&service));
    let mut server = register(Server::new().add_listener(listener), &service)
        .register_service(create_sandbox(Arc::new(sandboxes)));
    server.start().await.context("serve")?;
    tracing::info!("serving");
    service.done.notified().await;
    tokio::time::sleep(PARTING).await;
    server.shutdown().await.context("end serving")?;
    publisher.close();
    if tokio::time::timeout(EVENTS_LIMIT, sending).await.is_err() {
        tracing::error!("containerd does not take the last events");
    }
    Ok(())
}

/// The runtime options that `start` has been given; none, if none were.
fn runtime_options(path: &Path) -> anyhow::Result<Option<Any>> {
    let bytes = std::fs::read(path)?;
    Ok((!bytes.is_empty())
        .then(|| Any::parse_from_bytes(&bytes))
        .transpose()?)
}

fn register(mut server: Server, service: &Arc<TaskService>) -> Server {
    for name in SERVICES {
        let service: Arc<dyn Task + Send + Sync> = Arc::clone(service) as _;
        let renamed = create_task(service)
            .into_values()
            .map(|methods| (name.to_owned(), methods))
            .collect();
        server = server.register_service(renamed);
    }
    server
}

/// Takes the socket that `start` has made, and leaves nothing in its place.
fn take_listener() -> anyhow::Result<UnixListener> {
    let take = || -> io::Result<UnixListener> {
        let listener: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
        dup2_stdin(File::open("/dev/null")?)?;
        let listener = UnixListener::from(listener);
        listener.local_addr()?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    take().context("standard input is no socket: containerd runs this by the action \"start\"")
}

/// Opened so that neither this nor a message waits for a reader: when containerd is away, messages are lost.
fn open_log(path: &Path) -> io::Result<Option<File>> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_fifo() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::api::{ConnectRequest, StateRequest};
    use protobuf::Message;
    use ttrpc::r#async::Client;

    use super::*;

    /// A call of the service by its name, as containerd of that version makes it.
    async fn call(client: &Client, service: &str, method: &str, message: &impl Message) -> i32 {
        let mut request = ttrpc::Request::new();
        request.service = service.into();
        request.method = method.into();
        request.timeout_nano = 10_000_000_000;
        request.payload = message.write_to_bytes().unwrap();
        match client.request(request).await {
            Ok(response) => response
                .status
                .as_ref()
                .map_or(0, |status| status.code.value()),
            Err(ttrpc::Error::RpcStatus(status)) => status.code.value(),
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn both_versions_of_the_service_are_served() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (publisher, _sending) = Publisher::start("/nonexistent", "default");
        let service = Arc::new(TaskService::new("default", Arc::new(publisher)));
        let listener = Listener::try_from(listener).unwrap();
        let mut server = register(Server::new().add_listener(listener), &service);
        server.start().await.unwrap();
        let client = Client::connect(&format!("unix://{}", path.display()))
            .await
            .unwrap();
        let not_found = ttrpc::Code::NOT_FOUND as i32;
        for service in SERVICES {
            let connect = ConnectRequest::new();
            assert_eq!(call(&client, service, "Connect", &connect).await, 0);
            let state = StateRequest::new();
            assert_eq!(call(&client, service, "State", &state).await, not_found);
        }
        server.shutdown().await.unwrap();
    }

    #[test]
    fn a_log_without_a_reader_holds_nothing_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert!(open_log(&path).unwrap().is_none());
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let mut log = open_log(&path).unwrap().unwrap();
        let line = [b'x'; 1024];
        // More than a pipe holds.
        let lost = (0..2048).any(|_| io::Write::write_all(&mut log, &line).is_err());
        assert!(lost);
    }
}
