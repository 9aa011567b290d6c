//! Work in the mount namespace of another process.

use std::fs::File;
use std::io;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use crate::process_identity::ProcessIdentity;

/// Runs `work` in a thread of its own whose mount namespace is that of `process`, and whose root is the namespace's;
/// programs that it starts have them, too.
///
/// # Errors
/// The process has ended, or the namespace cannot be entered.
pub(crate) fn run_in<T: Send>(
    process: &ProcessIdentity,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{}/ns/mnt", process.pid))?;
    // Checked after opening: the pid was still the process's then.
    if !process.is_alive() {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    thread::scope(|scope| {
        thread::Builder::new()
            .name("mounts".into())
            .spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_FS)?;
                setns(&namespace, CloneFlags::CLONE_NEWNS)?;
                Ok(work())
            })?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
