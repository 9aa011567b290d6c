//! The monitor itself: what runs in the process that is one.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;

use super::pace::{Outcome, Pace};
use super::{FromMonitor, MonitorError};
use crate::config::is_of_kubernetes;
use crate::container::ContainerId;
use crate::error::chain;
use crate::metrics;
use crate::network::{Netns, Watch, embedded_dns, localhost};
use crate::process_identity::ProcessIdentity;
use crate::sandbox::{Followed, Sandbox};
use crate::store::{Store, StoreError};
use crate::vmm_process::vsock_socket;

/// Follows the network namespace that this process is in for the sandbox `id`, until the sandbox's VM ends.
///
/// # Errors
/// It cannot, or cannot any more. The maker has been told if it still waits.
pub(crate) fn serve(store: &Store, id: &ContainerId) -> Result<(), crate::Error> {
    // A process proxy, if it was made by one, has all signals blocked. It cannot fail.
    let _ = SigSet::empty().thread_set_mask();
    let monitor = match Monitor::start(store, id) {
        Ok(monitor) => monitor,
        Err(error) => {
            say(&FromMonitor::Failed {
                message: chain(&error),
            });
            return Err(error);
        }
    };
    say(&FromMonitor::Listening);
    monitor.run()
}

/// Whether the sandbox is a pod of Kubernetes: it was made for one, or annotations of its containers say so.
fn is_pod(store: &Store, id: &ContainerId) -> Result<bool, StoreError> {
    if store.sandbox(id)?.pod.is_some() {
        return Ok(true);
    }
    let containers = store.containers()?;
    let mut of_sandbox = containers
        .iter()
        .filter(|container| container.sandbox_id == *id);
    Ok(of_sandbox.any(|container| is_of_kubernetes(&container.annotations)))
}

/// Without a maker nobody wants to know.
fn say(message: &FromMonitor) {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    let mut output = io::stdout().lock();
    let _ = output.write_all(&line).and_then(|()| output.flush());
}

struct Monitor<'a> {
    store: &'a Store,
    id: &'a ContainerId,
    own: ProcessIdentity,
    netns: Netns,
    watch: Watch,
    vmm: OwnedFd,
    pace: Pace,
    /// What was complained about last.
    complaints: Vec<String>,
}

/// What ends a wait.
enum Wake {
    Event,
    Due,
    VmEnded,
}

impl<'a> Monitor<'a> {
    fn start(store: &'a Store, id: &'a ContainerId) -> Result<Self, crate::Error> {
        let vmm = store.sandbox(id)?.vmm.and_then(|vmm| vmm.open());
        let own = ProcessIdentity::own();
        embedded_dns::start(&vsock_socket(&store.sandbox_directory(id)))
            .map_err(MonitorError::EmbeddedDns)?;
        let netns = Netns::current()?;
        // The network is to be followed all the same.
        if let Err(error) = metrics::start(store.clone(), id.clone()) {
            tracing::warn!(error = %chain(&error), "nobody can ask for metrics");
        }
        if is_pod(store, id)?
            && let Err(error) = localhost::start(&netns, vsock_socket(&store.sandbox_directory(id)))
        {
            tracing::warn!(%error, "no port of the pod can be forwarded");
        }
        let mut monitor = Self {
            store,
            id,
            own: own.map_err(|error| MonitorError::Wait("own process", error))?,
            watch: Watch::start()?,
            netns,
            vmm: vmm.ok_or(MonitorError::NoVm)?,
            pace: Pace::default(),
            complaints: Vec::new(),
        };
        // What changed before it listened, it has not heard of.
        monitor.pace.event(Instant::now());
        Ok(monitor)
    }

    fn run(mut self) -> Result<(), crate::Error> {
        loop {
            match self.wait()? {
                Wake::VmEnded => return Ok(()),
                Wake::Event => {
                    if self.watch.drain()? {
                        self.pace.event(Instant::now());
                    }
                }
                Wake::Due => match self.look()? {
                    Some(outcome) => self.pace.looked(Instant::now(), outcome),
                    None => return Ok(()),
                },
            }
        }
    }

    fn wait(&self) -> Result<Wake, MonitorError> {
        loop {
            let left = self
                .pace
                .next_look()
                .map(|look| look.saturating_duration_since(Instant::now()));
            let timeout = match left {
                Some(left) if left.is_zero() => return Ok(Wake::Due),
                // To the end of the millisecond, or this would be a busy loop for the last part of one.
                Some(left) => PollTimeout::try_from(left.as_millis().saturating_add(1))
                    .unwrap_or(PollTimeout::MAX),
                None => PollTimeout::NONE,
            };
            let mut fds = [
                PollFd::new(self.vmm.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.watch.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, timeout) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(MonitorError::Wait("poll", errno.into())),
            }
            let [vmm, _] = fds;
            // An error of the socket is an event too.
            return Ok(if vmm.any() == Some(true) {
                Wake::VmEnded
            } else {
                Wake::Event
            });
        }
    }

    /// Makes VM and guest equal to the namespace; nothing if there is nothing left to do for this process.
    fn look(&mut self) -> Result<Option<Outcome>, crate::Error> {
        let mut sandbox = match Sandbox::open(self.store, self.id) {
            Ok(sandbox) => sandbox,
            Err(StoreError::NoSandbox { .. }) => return Ok(None),
            Err(error) => {
                self.pace.look();
                self.complain(vec![chain(&error)]);
                return Ok(Some(Outcome::Failed));
            }
        };
        if !sandbox.is_running() || !sandbox.is_monitored_by(self.own) {
            return Ok(None);
        }
        // The lock may have taken a while; what has changed up to now is seen by this look.
        self.watch.drain()?;
        self.pace.look();
        let answer = sandbox.follow_network(&self.netns);
        drop(sandbox);
        Ok(Some(match answer {
            Ok(followed) => self.followed(followed),
            Err(error) => {
                self.complain(vec![chain(&error)]);
                Outcome::Failed
            }
        }))
    }

    fn followed(&mut self, followed: Followed) -> Outcome {
        let Followed {
            rewired,
            lacking,
            unfinished,
            neighbours,
        } = followed;
        self.watch.expect_neighbours(neighbours);
        self.complain(lacking);
        match (unfinished, rewired) {
            (true, _) => Outcome::Failed,
            (false, true) => Outcome::Rewired,
            (false, false) => Outcome::Settled,
        }
    }

    /// Logs what is new: the same may be found at every look.
    fn complain(&mut self, complaints: Vec<String>) {
        for complaint in &complaints {
            if !self.complaints.contains(complaint) {
                tracing::warn!("{complaint}");
            }
        }
        self.complaints = complaints;
    }
}
