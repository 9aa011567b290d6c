//! The calls as the runtime makes them: through ttrpc, with the codes that it decides by.

mod host;

use host::{TestResult, on_a_guest, process};
use hull_agent::network::{Network, Sysfs};
use hull_agent::rpc::{Service, server};
use hull_agent_protocol::agent::{
    ContainerRequest, CreateContainerRequest, ExecProcessRequest, HealthRequest, ProcessRequest,
    ResizeTerminalRequest, SetNetworkRequest, SignalProcessRequest,
};
use hull_agent_protocol::agent_ttrpc::AgentClient;
use ttrpc::context::Context;
use ttrpc::{Client, Code};

/// Runs `calls` in a thread of its own against the guest's service.
async fn with_client(
    guest: &host::Guest,
    calls: impl FnOnce(AgentClient) -> TestResult + Send + 'static,
) -> TestResult {
    let address = format!("unix://{}", guest.directory().join("agent.sock").display());
    let network = Network::new(Sysfs {
        rescan: "/no/such/rescan".into(),
        interfaces: "/no/such/interfaces".into(),
    });
    let service = Service::new(guest.containers.clone(), network);
    let mut server = server(service).bind(&address)?;
    server.start().await?;
    tokio::task::spawn_blocking(move || calls(AgentClient::new(Client::connect(&address)?))).await?
}

fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Code {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        other => panic!("{other:?} is no status"),
    }
}

fn none() -> Context {
    ttrpc::context::with_timeout(60_000_000_000)
}

#[test]
fn a_container_lives_and_ends_by_calls() -> TestResult {
    on_a_guest(async |guest| {
        let config = guest.config(&[
            "sh",
            "-c",
            "trap 'exit 5' TERM; while true; do sleep 0.02; done",
        ]);
        let spec = config.to_string().into_bytes();
        with_client(guest, move |client| {
            let health = client.health(none(), &HealthRequest::new())?;
            assert_eq!(health.version, env!("CARGO_PKG_VERSION"));
            assert!(health.uptime > 0.0 && health.kernel_release.contains('.'));

            let container = || ContainerRequest {
                container_id: "c".to_owned(),
                ..Default::default()
            };
            let first = || ProcessRequest {
                container_id: "c".to_owned(),
                ..Default::default()
            };
            let create = CreateContainerRequest {
                container_id: "c".to_owned(),
                spec,
                ..Default::default()
            };
            let made = client.create_container(none(), &create)?;
            assert!(made.pid > 1);
            assert_eq!(
                code(client.create_container(none(), &create)),
                Code::ALREADY_EXISTS
            );
            let exec = |exec_id: &str, arguments: &[&str]| ExecProcessRequest {
                container_id: "c".to_owned(),
                exec_id: exec_id.to_owned(),
                process: process(arguments).to_string().into_bytes(),
                ..Default::default()
            };
            let early = client.exec_process(none(), &exec("e", &["true"]));
            assert_eq!(code(early), Code::FAILED_PRECONDITION);
            client.start_container(none(), &container())?;
            assert_eq!(
                code(client.start_container(none(), &container())),
                Code::FAILED_PRECONDITION
            );

            client.exec_process(none(), &exec("e", &["sh", "-c", "exit 9"]))?;
            let mut waited = first();
            waited.exec_id = "e".to_owned();
            for _ in 0..2 {
                let exit = client.wait_process(none(), &waited)?;
                assert_eq!((exit.exit_status, exit.oom_killed), (9, false));
                assert!(exit.exited_at > 1_000_000_000_000_000_000);
            }
            let again = client.exec_process(none(), &exec("e", &["true"]));
            assert_eq!(code(again), Code::ALREADY_EXISTS);
            assert_eq!(
                code(client.exec_process(none(), &exec("x", &["nonsense"]))),
                Code::NOT_FOUND
            );
            assert_eq!(
                code(client.exec_process(none(), &exec("x", &["/etc"]))),
                Code::PERMISSION_DENIED
            );
            assert_eq!(
                code(client.exec_process(none(), &exec("a/b", &["true"]))),
                Code::INVALID_ARGUMENT
            );

            let list = client.list_processes(none(), &container())?;
            assert!(
                list.processes
                    .iter()
                    .any(|one| one.pid == made.pid && one.command.starts_with("sh -c"))
            );
            let stats = client.stats_container(none(), &container())?;
            assert!(stats.files.contains_key("cpu.stat") && stats.network.contains("lo:"));

            let resize = ResizeTerminalRequest {
                container_id: "c".to_owned(),
                rows: 1,
                columns: 1,
                ..Default::default()
            };
            assert_eq!(
                code(client.resize_terminal(none(), &resize)),
                Code::FAILED_PRECONDITION
            );
            client.close_stdin(none(), &first())?;

            let term = SignalProcessRequest {
                container_id: "c".to_owned(),
                signal: 15,
                ..Default::default()
            };
            client.signal_process(none(), &term)?;
            assert_eq!(client.wait_process(none(), &first())?.exit_status, 5);
            assert_eq!(code(client.signal_process(none(), &term)), Code::NOT_FOUND);
            client.remove_container(none(), &container())?;
            assert_eq!(
                code(client.remove_container(none(), &container())),
                Code::NOT_FOUND
            );
            Ok(())
        })
        .await
    })
}

#[test]
fn what_a_guest_cannot_have_is_an_invalid_argument() -> TestResult {
    on_a_guest(async |guest| {
        with_client(guest, move |client| {
            for spec in ["{", "{}", "[]"] {
                let create = CreateContainerRequest {
                    container_id: "c".to_owned(),
                    spec: spec.as_bytes().to_vec(),
                    ..Default::default()
                };
                assert_eq!(
                    code(client.create_container(none(), &create)),
                    Code::INVALID_ARGUMENT
                );
            }
            let mut network = SetNetworkRequest::new();
            network.interfaces.push(Default::default());
            assert_eq!(
                code(client.set_network(none(), &network)),
                Code::INVALID_ARGUMENT
            );
            Ok(())
        })
        .await
    })
}
