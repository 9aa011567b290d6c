//! The maker's side of a process proxy.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hull_vmm_protocol::socket::{parse, receive, send};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::TimeVal;

use super::inherited::InheritedFile;
use super::messages::{Attach, FromProxy, Setup, ToProxy};
use super::{CONTROL_FD, ProxyError};
use crate::network::Netns;
use crate::own_program;
use crate::pending_child::{PendingChild, SpawnError};
use crate::process_identity::ProcessIdentity;

/// How long a proxy may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// Open files for the standard streams of a proxy, in place of its maker's own. A stream without one is `/dev/null`.
#[derive(Clone, Debug, Default)]
pub struct StandardStreams {
    /// Read by the proxy.
    pub stdin: Option<Arc<OwnedFd>>,
    /// Written by the proxy.
    pub stdout: Option<Arc<OwnedFd>>,
    /// Written by the proxy.
    pub stderr: Option<Arc<OwnedFd>>,
}

impl StandardStreams {
    fn apply(&self, command: &mut Command) -> io::Result<()> {
        let stdio = |fd: &Option<Arc<OwnedFd>>| -> io::Result<Stdio> {
            fd.as_ref()
                .map_or_else(|| Ok(Stdio::null()), |fd| fd.try_clone().map(Stdio::from))
        };
        command
            .stdin(stdio(&self.stdin)?)
            .stdout(stdio(&self.stdout)?)
            .stderr(stdio(&self.stderr)?);
        Ok(())
    }
}

/// A process proxy that is not on its own yet. Dropping it kills it.
#[derive(Debug)]
pub struct NewProxy {
    child: PendingChild,
    control: OwnedFd,
}

impl NewProxy {
    /// Starts a proxy in `netns` (or where its maker is), with `stdio`, or the maker's standard streams if that is none,
    /// and waits until it holds what `setup` says. It has the words of its process, `args`, for its own, so that whoever
    /// lists the host's processes by the pids that hull gives finds what runs in the guest. `files` are those of `setup`.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub fn spawn(
        netns: Option<&Netns>,
        args: &[String],
        setup: &Setup,
        stdio: Option<&StandardStreams>,
        files: &[InheritedFile],
    ) -> Result<Self, ProxyError> {
        let (control, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(|errno| ProxyError::host("make its control socket")(errno.into()))?;
        let limit = TimeVal::new(ANSWER_LIMIT.as_secs().try_into().unwrap_or(i64::MAX), 0);
        setsockopt(&control, sockopt::ReceiveTimeout, &limit)
            .and_then(|()| fcntl(theirs.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())))
            .map_err(|errno| ProxyError::host("set up its control socket")(errno.into()))?;
        let mut command = own_program::command();
        command
            .env(CONTROL_FD, theirs.as_raw_fd().to_string())
            .args(args.iter().skip(1));
        if let Some(program) = args.first() {
            command.arg0(program);
        }
        if let Some(stdio) = stdio {
            stdio
                .apply(&mut command)
                .map_err(ProxyError::host("give it its streams"))?;
        }
        let child = PendingChild::spawn(&mut command, netns).map_err(|error| match error {
            SpawnError::Netns(error) => ProxyError::Netns(Box::new(error)),
            SpawnError::Host(error) => ProxyError::host("start it")(error),
        })?;
        drop(theirs);
        let proxy = Self { child, control };
        let files: Vec<_> = files.iter().map(InheritedFile::as_fd).collect();
        proxy.tell(&ToProxy::Setup(setup.clone()), &files, &FromProxy::Ready)?;
        Ok(proxy)
    }

    /// Names it.
    pub fn identity(&self) -> ProcessIdentity {
        self.child.identity()
    }

    /// Connects it to the process that it stands for.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub fn attach(&self, attach: &Attach) -> Result<(), ProxyError> {
        self.tell(&ToProxy::Attach(attach.clone()), &[], &FromProxy::Attached)
    }

    /// Lets it live on without this process.
    ///
    /// # Errors
    /// It has ended.
    pub fn commit(mut self) -> Result<Child, ProxyError> {
        send(&self.control, &ToProxy::Commit, &[]).map_err(ProxyError::Lost)?;
        self.child
            .let_go()
            .ok_or_else(|| ProxyError::Lost(io::ErrorKind::NotFound.into()))
    }

    fn tell(
        &self,
        message: &ToProxy,
        files: &[BorrowedFd<'_>],
        expected: &FromProxy,
    ) -> Result<(), ProxyError> {
        send(&self.control, message, files).map_err(ProxyError::Lost)?;
        let packet = receive(&self.control)
            .map_err(ProxyError::Lost)?
            .ok_or_else(|| ProxyError::Lost(io::ErrorKind::UnexpectedEof.into()))?
            .0;
        match parse(&packet).map_err(|error| ProxyError::Lost(error.into()))? {
            FromProxy::Failed { message } => Err(ProxyError::Failed { message }),
            answer if answer == *expected => Ok(()),
            _ => Err(ProxyError::Lost(io::ErrorKind::InvalidData.into())),
        }
    }
}
