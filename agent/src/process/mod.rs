//! The processes that the runtime asked for: their pids, how they ended, their stdio, and the reaper of all children.
//!
//! Runs in the agent's event loop. Pids are the guest's; what crosses the boundary is a container id with an exec id.

mod reaper;

pub use reaper::{Exit, Reaper, Starting, Watched};

use crate::stdio::ProcessIo;

/// A process that the runtime asked for: a container's first, or one that exec added.
pub struct Process {
    watched: Watched,
    /// Its streams.
    pub io: ProcessIo,
}

impl Process {
    /// A process that `watched` follows, with the agent's ends of its streams.
    pub fn new(watched: Watched, io: ProcessIo) -> Self {
        Self { watched, io }
    }

    /// The pid in the guest.
    pub fn pid(&self) -> i32 {
        self.watched.pid()
    }

    /// How it ended, once it has.
    pub fn exit(&self) -> Option<Exit> {
        self.watched.exit()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Exit {
        self.watched.wait().await
    }

    /// Sends a signal. False: it has ended already.
    ///
    /// # Errors
    /// As kill(2).
    pub fn signal(&self, signal: i32) -> nix::Result<bool> {
        self.watched.signal(signal)
    }
}
