//! The init of a pod that no container holds: the first process of the pid namespace that the pod's containers share. It
//! reaps what they leave behind, as the container that holds a pod does elsewhere.
//!
//! The agent starts it with the first container that joins the namespace, and anew should it have ended, with which the
//! kernel ends all processes of the namespace (pid_namespaces(7)). SIGTERM and SIGINT end it, and of the others the kernel
//! delivers none that come from the pod. It is this program started again, in sight of the pod's containers: so it has
//! no capabilities, a user of its own, and an empty root.
//!
//! [`start`] is the agent's side, [`main`] the init's. What the init says before it closes its output is why it failed.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid, chdir, dup2_stdout, pivot_root, setgroups, setresgid, setresuid};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::process::{Reaper, Watched};
use crate::sys;

/// The first argument that makes this program a pod's init.
pub const ARGUMENT: &str = "pod-init";

/// What it is called in lists of processes, before its argument.
const NAME: &CStr = c"hull-agent";

/// Its user and group, as those of the image that Kubernetes holds pods with.
const USER: u32 = 65535;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum PodInitError {
    /// It could not be started, or not be heard.
    #[error("start the pod's init")]
    Start(#[source] io::Error),
    /// It could not set itself up.
    #[error("the pod's init: {0}")]
    SetUp(String),
}

/// Starts `program` as the init of a new pid namespace.
///
/// # Errors
/// See [`PodInitError`].
pub(super) async fn start(program: &Path, reaper: &Arc<Reaper>) -> Result<Watched, PodInitError> {
    let starting = reaper.starting();
    let child = spawn(program).map_err(PodInitError::Start)?;
    let pid =
        i32::try_from(child.id()).map_err(|error| PodInitError::Start(io::Error::other(error)))?;
    let init = starting.watch(pid);
    let failure = hear(child).await.map_err(PodInitError::Start)?;
    if failure.is_empty() {
        Ok(init)
    } else {
        Err(PodInitError::SetUp(failure))
    }
}

/// Whether it has not begun to end. It has lost its memory when the kernel ends the processes of its namespace, and is
/// there until they are gone.
pub(super) fn runs(init: &Watched) -> bool {
    let command = fs::read(format!("/proc/{}/cmdline", init.pid()));
    init.exit().is_none() && command.is_ok_and(|command| !command.is_empty())
}

fn spawn(program: &Path) -> io::Result<Child> {
    // The new namespace is that of all further children of the thread that asks for it.
    let in_namespace = || {
        unshare(CloneFlags::CLONE_NEWPID)?;
        Command::new(program)
            .arg0(OsStr::from_bytes(NAME.to_bytes()))
            .arg(ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    };
    std::thread::scope(|scope| {
        let spawned = scope.spawn(in_namespace).join();
        spawned.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Reads what it says until it closes its output.
async fn hear(child: Child) -> io::Result<String> {
    let output = child.stdout.ok_or(io::ErrorKind::BrokenPipe)?;
    let mut output = pipe::Receiver::from_owned_fd(output.into())?;
    let mut said = String::new();
    output.read_to_string(&mut said).await?;
    Ok(said)
}

/// The init's main function.
///
/// # Errors
/// When it cannot be one; the agent hears why.
pub fn main() -> anyhow::Result<()> {
    let signals = match set_up() {
        Ok(signals) => signals,
        Err(error) => {
            print!("{error:#}");
            return Err(error);
        }
    };
    // From here on there is nothing to say.
    dup2_stdout(io::stdin())?;
    while signals.wait()? == Signal::SIGCHLD {
        while let Ok(Some(_)) = sys::reap_any() {}
    }
    Ok(())
}

/// Makes this process what containers may see, and gives the signals that it waits for.
fn set_up() -> anyhow::Result<SigSet> {
    let signals: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]
        .into_iter()
        .collect();
    signals.thread_block().context("block signals")?;
    prctl::set_name(NAME).context("set its name")?;
    empty_root().context("make its root empty")?;
    let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
    setgroups(&[]).context("leave its groups")?;
    setresgid(group, group, group).context("change its group")?;
    // Its capabilities go with root (capabilities(7)).
    setresuid(user, user, user).context("change its user")?;
    prctl::set_no_new_privs().context("set no_new_privs")?;
    Ok(signals)
}

/// Leaves all file systems for one in which nothing is, and nothing can be made.
fn empty_root() -> nix::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), "/tmp", Some("tmpfs"), flags, none)?;
    chdir("/tmp")?;
    pivot_root(".", ".")?;
    // The old root lies over the new one now (pivot_root(2)).
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}
