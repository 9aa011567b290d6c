//! `exec`: one more process in a container that runs.

use std::path::PathBuf;
use std::process::Child;
use std::thread;
use std::time::Duration;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, User};

use super::state::{Status, status};
use super::streams::fit;
use super::{Console, ContainerError, ContainerId, write_pid_file};
use crate::Runtime;
use crate::bundle::{BundleError, read_process, read_spec, validate_process};
use crate::error::{Error, chain};
use crate::process_proxy::foreground::{HeldSignals, HostTerminal};
use crate::process_proxy::{Attach, InheritedFile, NewProxy, Setup, StandardStreams, Streams};
use crate::rootfs::translate_process;
use crate::sandbox::{agent_of, ensure_monitor};
use crate::store::{ContainerRecord, StoreError};
use crate::timing::Stopwatch;

/// How often a container that is paused is looked at.
const RESUME_INTERVAL: Duration = Duration::from_millis(100);

/// What `exec` is told.
#[derive(Clone, Debug)]
pub struct ExecOptions {
    /// The container.
    pub id: ContainerId,
    /// The process.
    pub process: ExecProcess,
    /// Who has its terminal.
    pub console: Console,
    /// Its standard streams; the caller's own if none.
    pub stdio: Option<StandardStreams>,
    /// Open files that it has beside those.
    pub files: Vec<InheritedFile>,
    /// Where the proxy's pid is written.
    pub pid_file: Option<PathBuf>,
    /// Wait for `resume` if the container is paused.
    pub ignore_paused: bool,
    /// The cgroup below the container's that it is in.
    pub cgroup: Option<String>,
}

/// The process that `exec` is to start.
#[derive(Clone, Debug)]
pub enum ExecProcess {
    /// As a file has it, whole.
    File(PathBuf),
    /// This one, whole.
    Given(Box<Process>),
    /// As the container's own, but for this.
    Like {
        /// The program and its arguments.
        args: Vec<String>,
        /// The working directory.
        cwd: Option<PathBuf>,
        /// Added to the environment: `NAME=value`.
        env: Vec<String>,
        /// Whether it has a terminal.
        tty: bool,
        /// User and group ids.
        user: Option<(u32, Option<u32>)>,
        /// Supplementary groups.
        additional_gids: Vec<u32>,
        /// Capabilities added to its bounding, effective and permitted sets.
        caps: Vec<Capability>,
        /// Whether `no_new_privs` is set.
        no_new_privs: bool,
    },
}

/// Starts a process in a container. Detached, gives 0 once it runs; otherwise waits for its end and gives its exit
/// code.
///
/// # Errors
/// The container does not run, or the process cannot.
pub fn exec(runtime: &Runtime, options: &ExecOptions) -> Result<u8, Error> {
    if options.console.is_detached() {
        return exec_detached(runtime, options).map(|_| 0);
    }
    let mut wanted = Wanted::check(runtime, options)?;
    let signals = HeldSignals::hold()?;
    let terminal = HostTerminal::of(&wanted.streams)?;
    fit(&mut wanted.process, terminal.as_ref());
    let terminal = terminal.map(HostTerminal::make_raw).transpose()?;
    let mut executed = wanted.start(runtime, options)?;
    let code = signals.wait(&mut executed.proxy)?;
    drop(terminal);
    Ok(code)
}

/// A process that was started in a container.
#[derive(Debug)]
pub struct Executed {
    /// Its process proxy, a child of this process.
    pub proxy: Child,
    /// What its sandbox knows it by.
    pub exec_id: String,
}

/// Starts a process in a container, for a caller that waits for its proxy, or goes before it.
///
/// # Errors
/// The container does not run, or the process cannot.
pub fn exec_detached(runtime: &Runtime, options: &ExecOptions) -> Result<Executed, Error> {
    Wanted::check(runtime, options)?.start(runtime, options)
}

/// A process that can be started.
struct Wanted {
    record: ContainerRecord,
    process: Process,
    streams: Streams,
}

impl Wanted {
    fn check(runtime: &Runtime, options: &ExecOptions) -> Result<Self, Error> {
        let record = running(runtime, options)?;
        let process = process(&record, &options.process)?;
        let streams = options.console.streams(&process)?;
        Ok(Self {
            record,
            process,
            streams,
        })
    }

    fn start(self, runtime: &Runtime, options: &ExecOptions) -> Result<Executed, Error> {
        if let Err(error) = ensure_monitor(&runtime.store, &self.record.sandbox_id) {
            tracing::warn!(container = %self.record.id, error = %chain(&error), "changes of the network are not followed");
        }
        start(runtime, &self.record, options, self.process, self.streams)
    }
}

/// The container, which runs; while it is paused it is waited for if that is to be ignored, since a process that
/// joined its frozen cgroup would not come to run.
fn running(runtime: &Runtime, options: &ExecOptions) -> Result<ContainerRecord, Error> {
    loop {
        let record = runtime.store.container(&options.id)?;
        let status = status(&runtime.store, &record);
        let problem = match status {
            Status::Running | Status::Created => return Ok(record),
            Status::Paused if options.ignore_paused => {
                thread::sleep(RESUME_INTERVAL);
                continue;
            }
            Status::Paused => "cannot exec in a paused container (use --ignore-paused to override)",
            Status::Stopped => "cannot exec in a stopped container",
            Status::Creating => "cannot exec in a container that is not running",
        };
        return Err(ContainerError::WrongState {
            id: record.id,
            status,
            problem,
        }
        .into());
    }
}

/// The process in the guest and its proxy; when that fails the process is killed.
fn start(
    runtime: &Runtime,
    record: &ContainerRecord,
    options: &ExecOptions,
    process: Process,
    streams: Streams,
) -> Result<Executed, Error> {
    let mut stopwatch = Stopwatch::start();
    let files: Vec<_> = options.files.iter().map(InheritedFile::kind).collect();
    let proxy = NewProxy::spawn(
        None,
        process.args().as_deref().unwrap_or_default(),
        &Setup {
            streams,
            own_session: options.console.is_detached(),
            log: runtime.log.clone(),
            origin: stopwatch.origin(),
            own_mounts: false,
            files: files.clone(),
        },
        options.stdio.as_ref(),
        &options.files,
    )?;
    if let Some(cgroup) = &record.cgroup {
        // Not while it is deleted, or there would be its cgroup again.
        let turn = runtime.store.lock_container(&record.id)?;
        let _turn = turn.ok_or_else(|| StoreError::NotFound {
            id: record.id.clone(),
        })?;
        cgroup.add(proxy.identity())?;
    }
    stopwatch.phase("proxy");
    // The proxy's pid alone could come again while the agent still knows the one before.
    let identity = proxy.identity();
    let exec_id = format!("exec-{}-{}", identity.pid, identity.start_time);
    let mut agent = agent_of(&runtime.store, &record.sandbox_id)?;
    let process = translate_process(process)?;
    let cgroup = options.cgroup.as_deref();
    agent.exec_process(&record.id, &exec_id, process, &files, cgroup)?;
    stopwatch.phase("process");
    let attached = proxy
        .attach(&Attach {
            root: runtime.store.root().into(),
            sandbox_id: record.sandbox_id.clone(),
            container_id: record.id.clone(),
            exec_id: exec_id.clone(),
            files: Vec::new(),
            shows_processes: false,
            notify: None,
        })
        .map_err(Error::from)
        .and_then(|()| {
            if let Some(path) = &options.pid_file {
                write_pid_file(path, identity.pid)?;
            }
            Ok(proxy.commit()?)
        });
    let attached = attached.inspect_err(|_| {
        let killed = agent.signal(&record.id, &exec_id, libc::SIGKILL.unsigned_abs(), false);
        if let Err(error) = killed {
            tracing::debug!(error = %chain(&error), "killing a process without a proxy");
        }
    });
    let proxy = attached?;
    stopwatch.phase("attach");
    Ok(Executed { proxy, exec_id })
}

fn process(record: &ContainerRecord, wanted: &ExecProcess) -> Result<Process, Error> {
    let process = match wanted {
        ExecProcess::File(path) => {
            let mut process = read_process(path)?;
            if process.capabilities().is_none() {
                // As with runc, those of the container.
                let spec = read_spec(&record.bundle)?;
                let own = spec.process().as_ref();
                process.set_capabilities(own.and_then(|own| own.capabilities().clone()));
            }
            return Ok(process);
        }
        ExecProcess::Given(process) => (**process).clone(),
        like @ ExecProcess::Like { .. } => {
            let spec = read_spec(&record.bundle)?;
            let own = spec.process().clone().ok_or(BundleError::Field {
                field: "process",
                problem: "it is missing".into(),
            })?;
            like_own(own, like)
        }
    };
    validate_process(&process)?;
    Ok(process)
}

fn like_own(mut process: Process, wanted: &ExecProcess) -> Process {
    let ExecProcess::Like {
        args,
        cwd,
        env,
        tty,
        user,
        additional_gids,
        caps,
        no_new_privs,
    } = wanted
    else {
        return process;
    };
    process
        .set_args(Some(args.clone()))
        .set_terminal(Some(*tty));
    if let Some(cwd) = cwd {
        process.set_cwd(cwd.clone());
    }
    let mut all = process.env().clone().unwrap_or_default();
    all.extend(env.iter().cloned());
    process.set_env(Some(all));
    let mut new_user = match user {
        None => process.user().clone(),
        Some((uid, gid)) => {
            let mut new = User::default();
            new.set_uid(*uid).set_gid(gid.unwrap_or(0));
            new
        }
    };
    if !additional_gids.is_empty() {
        let mut all = new_user.additional_gids().clone().unwrap_or_default();
        all.extend(additional_gids);
        new_user.set_additional_gids(Some(all));
    }
    process.set_user(new_user);
    if *no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if !caps.is_empty() {
        let own = process.capabilities().clone();
        process.set_capabilities(Some(with_capabilities(own, caps)));
    }
    process
}

/// Adds to the sets that runc adds to: all but the ambient and the inheritable one.
fn with_capabilities(own: Option<LinuxCapabilities>, added: &[Capability]) -> LinuxCapabilities {
    let none = || {
        let mut none = LinuxCapabilities::default();
        none.set_bounding(None)
            .set_effective(None)
            .set_inheritable(None)
            .set_permitted(None)
            .set_ambient(None);
        none
    };
    let mut capabilities = own.unwrap_or_else(none);
    let extend = |set: &Option<Capabilities>| -> Option<Capabilities> {
        Some(set.iter().flatten().chain(added).copied().collect())
    };
    let bounding = extend(capabilities.bounding());
    let effective = extend(capabilities.effective());
    let permitted = extend(capabilities.permitted());
    capabilities
        .set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted);
    capabilities
}

/// `CAP_NET_ADMIN`, in any case, with or without its prefix.
///
/// # Errors
/// It is no capability.
pub fn parse_capability(text: &str) -> Result<Capability, ContainerError> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    serde_json::from_value(format!("CAP_{name}").into())
        .map_err(|_| ContainerError::Capability(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Process {
        serde_json::from_value(serde_json::json!({
            "args": ["sh"], "cwd": "/srv", "env": ["A=1"], "terminal": true,
            "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
            "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"]},
        }))
        .unwrap()
    }

    fn wanted(user: Option<(u32, Option<u32>)>, caps: Vec<Capability>) -> ExecProcess {
        ExecProcess::Like {
            args: vec!["id".into()],
            cwd: None,
            env: vec!["B=2".into()],
            tty: false,
            user,
            additional_gids: vec![8],
            caps,
            no_new_privs: true,
        }
    }

    #[test]
    fn a_process_is_like_the_containers_own_but_for_what_is_said() {
        let process = like_own(own(), &wanted(None, vec![]));
        assert_eq!(process.args().as_deref().unwrap(), ["id"]);
        assert_eq!(process.env().as_deref().unwrap(), ["A=1", "B=2"]);
        assert_eq!(process.cwd(), std::path::Path::new("/srv"));
        assert_eq!(process.terminal(), Some(false));
        assert_eq!(process.no_new_privileges(), Some(true));
        let user = process.user();
        assert_eq!((user.uid(), user.gid()), (5, 6));
        assert_eq!(user.additional_gids().as_deref().unwrap(), [7, 8]);
    }

    #[test]
    fn a_user_replaces_and_capabilities_are_added() {
        let net_admin = parse_capability("net_admin").unwrap();
        let process = like_own(own(), &wanted(Some((9, None)), vec![net_admin]));
        assert_eq!((process.user().uid(), process.user().gid()), (9, 0));
        assert_eq!(process.user().additional_gids().as_deref().unwrap(), [8]);
        let capabilities = process.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 2);
        assert_eq!(capabilities.permitted().as_ref().unwrap().len(), 1);
        assert_eq!(*capabilities.ambient(), None);
        parse_capability("CAP_NOSUCH").unwrap_err();
    }
}
