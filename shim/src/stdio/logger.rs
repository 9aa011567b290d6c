//! A program that reads a process's outputs: descriptor 3 is the one, 4 the other, and it closes 5 when it is ready
//! (containerd's `core/runtime/v2/README.md`, "Logging").

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use super::Owner;
use crate::error::Error;
use crate::sys;

/// How long it may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Above the descriptors that it is given.
const HIGH: i32 = 10;

/// Starts it, and waits until it is ready. It ends when both outputs have.
pub(super) fn start(
    program: &Path,
    arguments: &[OsString],
    owner: Owner<'_>,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<(), Error> {
    let fail = |operation| Error::io(operation, program);
    let (ready, theirs) =
        pipe2(OFlag::O_CLOEXEC).map_err(|errno| fail("make a pipe for")(errno.into()))?;
    let fds: io::Result<Vec<OwnedFd>> = [stdout, stderr, theirs].iter().map(move_high).collect();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("CONTAINER_ID", owner.id)
        .env("CONTAINER_NAMESPACE", owner.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::pass_fds(&mut command, fds.map_err(fail("make descriptors for"))?);
    let mut child = command.spawn().map_err(fail("run the logger"))?;
    // With it go this process's copies.
    drop(command);
    if !await_end(&ready).map_err(fail("wait for the logger"))? {
        // It has not been waited for, so this cannot fail.
        let _ = child.kill();
        reap(child);
        return Err(fail("wait for the logger")(io::ErrorKind::TimedOut.into()));
    }
    reap(child);
    Ok(())
}

/// A copy with a number that is none of those it will get.
#[allow(unsafe_code)]
fn move_high(fd: &OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let copy = fcntl(fd.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(HIGH))?;
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Whether the other end was closed in time.
fn await_end(ready: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(READY_LIMIT).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut fds, limit) {
            Ok(count) => return Ok(count > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn reap(mut child: Child) {
    let waiting = std::thread::Builder::new()
        .name("logger".into())
        .spawn(move || {
            // Whether it went well is for its own log.
            let _ = child.wait();
        });
    if let Err(error) = waiting {
        tracing::warn!(%error, "nobody waits for the logger");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn a_logger_reads_both_outputs_and_knows_whose_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = "exec 5>&-; echo $CONTAINER_NAMESPACE/$CONTAINER_ID > $0.new; cat <&3 >> $0.new; \
                      cat <&4 >> $0.new; mv $0.new $0";
        let (stdout, mut out) = pipe();
        let (stderr, mut err) = pipe();
        let owner = Owner {
            namespace: "default",
            id: "c1",
        };
        let arguments = ["-c".into(), script.into(), log.clone().into_os_string()];
        start(Path::new("/bin/sh"), &arguments, owner, stdout, stderr).unwrap();
        out.write_all(b"out\n").unwrap();
        err.write_all(b"err\n").unwrap();
        drop((out, err));
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !log.exists() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(
            std::fs::read_to_string(log).unwrap(),
            "default/c1\nout\nerr\n"
        );
    }

    fn pipe() -> (OwnedFd, File) {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        (reader, File::from(writer))
    }
}
