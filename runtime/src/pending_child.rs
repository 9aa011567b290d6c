//! A process that this one has started, until it lives on its own.

use std::io;
use std::process::{Child, ChildStdout, Command};

use crate::network::{self, Netns};
use crate::process_identity::ProcessIdentity;

/// How a process is not started.
#[derive(Debug)]
pub(crate) enum SpawnError {
    /// Its network namespace cannot be entered.
    Netns(network::Error),
    /// The host refused it.
    Host(io::Error),
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct PendingChild {
    /// Empty once it lives on its own.
    child: Option<Child>,
    identity: ProcessIdentity,
}

impl PendingChild {
    /// Starts `command` in `netns`, or where this process is.
    pub(crate) fn spawn(command: &mut Command, netns: Option<&Netns>) -> Result<Self, SpawnError> {
        let child = match netns {
            // A child is born in the network namespace of the thread that makes it.
            Some(netns) => netns.run(|| command.spawn()).map_err(SpawnError::Netns)?,
            None => command.spawn(),
        };
        let mut child = child.map_err(SpawnError::Host)?;
        match ProcessIdentity::of(child.id()) {
            Ok(identity) => Ok(Self {
                child: Some(child),
                identity,
            }),
            Err(error) => {
                end(&mut child);
                Err(SpawnError::Host(error))
            }
        }
    }

    /// Names it.
    pub(crate) fn identity(&self) -> ProcessIdentity {
        self.identity
    }

    /// The pipe on its standard output, once, if it has one.
    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.as_mut()?.stdout.take()
    }

    /// Lets it live on its own. It is still a child of this process, to be waited for; none if it was let go before.
    pub(crate) fn let_go(&mut self) -> Option<Child> {
        self.child.take()
    }
}

impl Drop for PendingChild {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
    }
}

/// Neither can fail for a child that was not waited for.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
