//! Tells the host that the kernel's OOM killer has ended processes of a container, when it does so: the stream
//! `out-of-memory` of [`hull_agent_protocol::stdio`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::sync::watch;

use super::cgroup::{Cgroup, oom_kills};
use crate::process::Process;
use crate::sys;

/// How long the host may take to hear of the last.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// More than `memory.events` has, in bytes.
const MAX_EVENTS: usize = 4096;

/// What tells of them.
pub(crate) struct OutOfMemory {
    cgroup: Cgroup,
    /// Somebody listens, or has done so.
    taken: AtomicBool,
    telling: watch::Sender<bool>,
}

impl OutOfMemory {
    pub(super) fn new(cgroup: Cgroup) -> Self {
        Self {
            cgroup,
            taken: AtomicBool::new(false),
            telling: watch::Sender::new(false),
        }
    }

    /// Takes the stream: the first caller may.
    pub(crate) fn take(&self) -> bool {
        let is_first = !self.taken.swap(true, Ordering::Relaxed);
        if is_first {
            self.telling.send_replace(true);
        }
        is_first
    }

    /// After the end of the container's first process: waits until whoever listens has been told all.
    pub(crate) async fn told(&self) {
        let mut telling = self.telling.subscribe();
        let told = telling.wait_for(|telling| !telling);
        if tokio::time::timeout(LAST_WORDS, told).await.is_err() {
            tracing::warn!("nobody takes what is told of memory");
        }
    }

    /// Tells the host until `process`, the container's first, has ended.
    pub(crate) async fn carry(
        &self,
        from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        process: &Process,
    ) {
        if let Err(error) = self.tell(from, &mut to, process).await {
            tracing::warn!(%error, "telling of memory");
        }
        // The connection may be gone as well.
        let _ = to.shutdown().await;
        self.telling.send_replace(false);
    }

    async fn tell(
        &self,
        mut from: impl AsyncRead + Unpin,
        to: &mut (impl AsyncWrite + Unpin),
        process: &Process,
    ) -> io::Result<()> {
        let file = File::open(self.cgroup.path().join("memory.events"))?;
        let changes = sys::watched_for(file.try_clone()?.into(), Interest::PRIORITY)?;
        let mut seen = 0;
        loop {
            let has_ended = process.exit().is_some();
            // A change after this is an event.
            let mut text = [0; MAX_EVENTS];
            let length = file.read_at(&mut text, 0)?;
            let kills = oom_kills(&String::from_utf8_lossy(&text[..length]));
            if kills > seen {
                to.write_all(&[0]).await?;
                seen = kills;
            }
            if has_ended {
                return Ok(());
            }
            tokio::select! {
                ready = changes.ready(Interest::PRIORITY) => ready?.clear_ready(),
                _ = process.wait() => {}
                // The host says nothing: this is its end.
                _ = from.read_u8() => return Ok(()),
            }
        }
    }
}
