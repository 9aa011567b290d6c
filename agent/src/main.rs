//! The guest's `/init`, and what it starts of itself: helpers, and a pod's init.

use std::ffi::OsStr;
use std::sync::Arc;

use anyhow::{Context, bail};
use hull_agent::container::{Containers, Paths, helper, pod_init};
use hull_agent::network::{Network, Sysfs, localhost};
use hull_agent::process::Reaper;
use hull_agent::rpc::Service;
use hull_agent::vsock::HostListener;
use hull_agent::{init, rpc, stdio};
use hull_agent_protocol::ports;
use ttrpc::r#async::transport::Listener;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next();
    if role.as_deref() == Some(OsStr::new(pod_init::ARGUMENT)) {
        return pod_init::main();
    }
    if role.as_deref() == Some(OsStr::new(helper::ARGUMENT)) {
        let numbers = arguments.map(|argument| {
            let text = argument.to_str().context("a descriptor is a number")?;
            text.parse().context("a descriptor is a number")
        });
        let numbers: Vec<_> = numbers.collect::<anyhow::Result<_>>()?;
        let (socket, files) = numbers.split_first().context("a helper needs its socket")?;
        return helper::main(*socket, files);
    }
    if std::process::id() != 1 {
        bail!("hull-agent is the first process of a hull guest");
    }
    // The guest ends with its first process, and the kernel tells the VMM; without this a panic in a task would only end
    // the task.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(101);
    }));
    init::bring_up().context("bring the guest up")?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?
        .block_on(serve())
}

/// Serves the runtime until the guest ends.
async fn serve() -> anyhow::Result<()> {
    let reaper = Arc::new(Reaper::default());
    let containers = Arc::new(Containers::new(Paths::guest(), Arc::clone(&reaper)));
    let network = Network::new(Sysfs::guest());

    hull_agent::network::bring_loopback_up()
        .await
        .context("bring the loopback interface up")?;
    let streams = HostListener::bind(ports::STDIO).context("listen for streams")?;
    let forwarded = HostListener::bind(ports::LOCALHOST).context("listen for connections")?;
    let calls = HostListener::bind(ports::RPC).context("listen for calls")?;
    let service = Service::new(Arc::clone(&containers), network);
    let mut server = rpc::server(service).add_listener(Listener::new(calls.connections()));
    server.start().await.context("serve calls")?;
    // The kernel's log puts the time since boot before it.
    tracing::info!("serving");
    tokio::select! {
        ended = reaper.run() => ended.context("reap processes"),
        ended = stdio::server::serve_all(streams.connections(), containers) => ended.context("serve streams"),
        ended = localhost::serve_all(forwarded.connections()) => ended.context("serve connections"),
    }
}
