//! Open files that the caller has left for the process, by `--preserve-fds` and by its being a service (sd_listen_fds(3)).

use std::os::fd::RawFd;

use anyhow::bail;
use hull_agent_protocol::stdio::FIRST_FILE;
use hull_runtime::process_proxy::InheritedFile;
use hull_vmm_protocol::control::MAX_FDS;

/// The open files of a process that is to be made.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    pub(super) files: Vec<InheritedFile>,
    /// How many of them, the first ones, are for the service to listen on.
    pub(super) listening: usize,
}

impl Inherited {
    /// Takes `listening` sockets of a service, and `preserved` files after them. Nothing of this process's own may be open
    /// yet.
    pub(super) fn take(listening: u32, preserved: u32) -> anyhow::Result<Self> {
        let count = listening.saturating_add(preserved);
        // All go with one message to the process proxy.
        if usize::try_from(count)? > MAX_FDS {
            bail!("{count} open files are to be handed on, and {MAX_FDS} are the most");
        }
        let first = RawFd::try_from(FIRST_FILE)?;
        let files = (first..first + RawFd::try_from(count)?)
            .map(InheritedFile::take)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            files,
            listening: usize::try_from(listening)?,
        })
    }
}

/// How many sockets a service manager has opened for this process.
pub(super) fn sockets_of_service() -> u32 {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let is_for_this = number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS").filter(|_| is_for_this).unwrap_or(0)
}
