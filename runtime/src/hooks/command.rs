//! One hook: its program is run in a process group of its own, watched until its time is over, and what it says is
//! kept for the error message.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use oci_spec::runtime::Hook;

use super::{HookError, HookKind};

/// The most that is kept of what a hook writes, in bytes; the rest is read and dropped.
const MAX_OUTPUT: usize = 16 * 1024;
/// How long the output of a hook that has ended may be held open by what it left running.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

pub(super) fn run(
    kind: HookKind,
    index: usize,
    hook: &Hook,
    state: &str,
    directory: &Path,
) -> Result<(), HookError> {
    let kind = kind.name();
    let fail = |source| HookError::Run {
        kind,
        index,
        path: hook.path().clone(),
        source,
    };
    let mut child = command(hook, directory).spawn().map_err(fail)?;
    let input = child
        .stdin
        .take()
        .map(|stdin| feed(stdin, state.to_owned()));
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let timeout = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs);
    let ended = wait(child, timeout).map_err(fail)?;
    let stdout = stdout.map(finish).unwrap_or_default();
    let stderr = stderr.map(finish).unwrap_or_default();
    drop(input);
    match (ended, timeout) {
        (Some(status), _) if status.success() => Ok(()),
        (Some(status), _) => Err(HookError::Failed {
            kind,
            index,
            status,
            stdout,
            stderr,
        }),
        (None, timeout) => Err(HookError::TimedOut {
            kind,
            index,
            timeout: timeout.unwrap_or_default(),
            stdout,
            stderr,
        }),
    }
}

/// The program, with exactly its arguments; without an environment of its own it has that of the `hull` command, as
/// with runc.
fn command(hook: &Hook, directory: &Path) -> Command {
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_deref().and_then(<[_]>::split_first) {
        command.arg0(name).args(arguments);
    }
    if let Some(env) = hook.env() {
        command.env_clear();
        command.envs(env.iter().filter_map(|entry| entry.split_once('=')));
    }
    command
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command
}

/// Waits for the program's end; nothing if its time was over first, and it was killed.
fn wait(mut child: Child, timeout: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    let Some(timeout) = timeout else {
        return child.wait().map(Some);
    };
    let group = Pid::from_raw(i32::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidData)?);
    let (sender, receiver) = mpsc::channel();
    let waiter = thread::Builder::new().name("hook".into()).spawn(move || {
        // The receiver is gone if the time was over.
        let _ = sender.send(child.wait());
    })?;
    if let Ok(status) = receiver.recv_timeout(timeout) {
        return status.map(Some);
    }
    // It is gone if it ended in this moment.
    let _ = killpg(group, Signal::SIGKILL);
    // The thread only waits for the process that was just killed.
    let _ = waiter.join();
    Ok(None)
}

/// Writes the state in a thread, for a hook need not read it.
fn feed(mut stdin: impl Write + Send + 'static, state: String) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        // A hook that does not want it has closed its end.
        let _ = stdin.write_all(state.as_bytes());
    })
}

/// Reads an output to its end in a thread, which sends the beginning of it.
fn collect(mut output: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut chunk) {
            // Without a receiver the rest is dropped, so that whoever writes does not block.
            let _ = sender.send(chunk[..count].to_vec());
        }
    });
    receiver
}

fn finish(output: mpsc::Receiver<Vec<u8>>) -> String {
    let mut text = Vec::new();
    while let Ok(chunk) = output.recv_timeout(OUTPUT_GRACE) {
        let room = MAX_OUTPUT.saturating_sub(text.len());
        text.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if room == 0 {
            break;
        }
    }
    String::from_utf8_lossy(&text).trim_end().to_owned()
}
