//! The last steps of a process before its program runs, in the process itself: in its namespaces and root, with its user,
//! capabilities and environment.

use std::collections::HashMap;
use std::env;
use std::ffi::{CString, NulError, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use libcontainer::capabilities::drop_privileges;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access, execve, fchown};
use oci_spec::runtime::{Capability, Hook, Process, Spec};

use super::{Failure, seccomp};
use crate::container::spec::Payload;
use crate::sys;

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a process ends with when its program cannot be executed after all, as under runc.
const EXECUTION_FAILED: i32 = 255;

/// Executes the program under the [`Payload`]'s seccomp profile and capabilities.
#[derive(Clone)]
pub(super) struct PayloadExecutor {
    payload: Payload,
    container_id: String,
    /// Takes the [`Failure`] of [`Executor::validate`], which `libcontainer` would flatten to a sentence.
    refusals: Arc<File>,
}

impl PayloadExecutor {
    pub(super) fn new(payload: Payload, container_id: String, refusals: Arc<File>) -> Self {
        Self {
            payload,
            container_id,
            refusals,
        }
    }

    /// Everything between "start" and exec(2). Returns only when it fails.
    fn execute(&self, spec: &Spec) -> Result<std::convert::Infallible, Box<dyn std::error::Error>> {
        let process = spec.process().as_ref().ok_or("no process")?;
        let arguments = process.args().as_deref().unwrap_or_default();
        let program = program(process)?;
        if let Some((rows, columns)) = self.payload.window.filter(|_| self.payload.terminal) {
            sys::set_window_size(io::stdin().as_fd(), rows, columns)?;
        }
        if self.payload.gives_terminal() {
            fchown(io::stdin(), Some(self.payload.user.into()), None)?;
        }
        let path = CString::new(program.as_os_str().as_bytes())?;
        let arguments = arguments
            .iter()
            .map(|argument| CString::new(argument.as_bytes()))
            .collect::<Result<Vec<_>, _>>()?;

        for target in &self.payload.readonly_mounts {
            make_readonly(target)?;
        }
        let loads_with_privileges = self.payload.loads_with_privileges();
        if loads_with_privileges {
            self.load_seccomp()?;
        }
        if self.payload.needs_privileges() {
            drop_privileges(&self.payload.capabilities, create_syscall().as_ref())?;
        }
        if !loads_with_privileges {
            self.load_seccomp()?;
        }
        self.run_hooks()?;
        sys::default_sigpipe()?;
        match execve(&path, &arguments, &environment(process)?) {
            Ok(never) => Ok(never),
            Err(errno) => {
                let reason = errno.desc().to_lowercase();
                Err(format!("exec {}: {reason}", program.display()).into())
            }
        }
    }

    fn load_seccomp(&self) -> Result<(), Box<dyn std::error::Error>> {
        if let Some(profile) = &self.payload.seccomp {
            seccomp::load(profile)?;
        }
        Ok(())
    }

    /// startContainer hooks run in the container, after "start" and before the program (runtime specification, §
    /// POSIX-platform Hooks), and as under runc with all that the program is to have; they read the state on stdin.
    fn run_hooks(&self) -> Result<(), Box<dyn std::error::Error>> {
        let state = serde_json::json!({
            "ociVersion": "1.0.2",
            "id": self.container_id,
            "status": "created",
            "pid": std::process::id(),
            "bundle": "/",
        })
        .to_string();
        for (index, hook) in self.payload.start_hooks.iter().enumerate() {
            run_hook(hook, &state).map_err(|error| {
                format!("error running startContainer hook #{index}: error running hook: {error}")
            })?;
        }
        Ok(())
    }
}

impl Executor for PayloadExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let Err(error) = self.execute(spec);
        // The agent has answered "started": the process's own stderr is where its caller looks.
        let _ = writeln!(io::stderr(), "{error}");
        std::process::exit(EXECUTION_FAILED);
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let refused = |failure: Failure| {
            if let Ok(json) = serde_json::to_vec(&failure) {
                // A refusal that cannot be written arrives as a sentence all the same.
                let _ = (&*self.refusals).write_all(&json);
            }
            ExecutorValidationError::ArgValidationError(failure.to_string())
        };
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| refused(Failure::Other("there is no process".to_owned())))?;
        program(process).map(drop).map_err(refused)
    }
}

/// Makes a mount read-only, and leaves the rest of it as it is.
fn make_readonly(target: &Path) -> nix::Result<()> {
    let given = statvfs(target)?.flags();
    let kept = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ];
    let kept = kept.iter().filter(|(flag, _)| given.contains(*flag));
    let flags = kept.fold(
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
        |flags, (_, flag)| flags | *flag,
    );
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
}

/// Finds the program as execvp(3) does, and says what is wrong with it as runc does.
fn program(process: &Process) -> Result<PathBuf, Failure> {
    let name = process
        .args()
        .as_ref()
        .and_then(|arguments| arguments.first())
        .map_or("", String::as_str);
    let denied = || Failure::NotExecutable(format!("exec: {name:?}: permission denied"));
    if name.contains('/') {
        return match executable(process, Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => {
                let reason = errno.desc().to_lowercase();
                Err(Failure::NotFound(format!(
                    "exec: {name:?}: stat {name}: {reason}"
                )))
            }
            Err(Errno::EISDIR) => Err(Failure::NotExecutable(format!(
                "exec: {name:?}: is a directory"
            ))),
            Err(_) => Err(denied()),
        };
    }
    let path = process
        .env()
        .iter()
        .flatten()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let mut found_denied = false;
    for directory in path.split(':').filter(|_| !name.is_empty()) {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(name);
        match executable(process, &candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => found_denied = true,
            Err(_) => {}
        }
    }
    if found_denied {
        return Err(denied());
    }
    Err(Failure::NotFound(format!(
        "exec: {name:?}: executable file not found in $PATH"
    )))
}

/// This process's environment, in the order in which the specification gives it; `libcontainer` keeps it in a table. What
/// that has added, such as `HOME`, comes last. `HOME` of a user that the container does not know is `/`, as under runc.
fn environment(process: &Process) -> Result<Vec<CString>, NulError> {
    let given = process.env().as_deref().unwrap_or_default();
    let place = |name: &OsStr| {
        given
            .iter()
            .rposition(|variable| {
                let found = variable.split_once('=').map(|(name, _)| OsStr::new(name));
                found == Some(name)
            })
            .unwrap_or(usize::MAX)
    };
    let mut variables: Vec<_> = env::vars_os().collect();
    variables.retain(|(name, value)| name != "HOME" || !value.is_empty());
    if !variables.iter().any(|(name, _)| name == "HOME") {
        variables.push(("HOME".into(), "/".into()));
    }
    variables.sort_by_cached_key(|(name, _)| place(name));
    variables
        .into_iter()
        .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect()
}

/// Whether `process`, as which this one runs, may execute the file. access(2) goes by its user alone.
fn executable(process: &Process, path: &Path) -> nix::Result<()> {
    let mode = nix::sys::stat::stat(path)?.st_mode;
    match mode & libc::S_IFMT {
        libc::S_IFREG => match access(path, AccessFlags::X_OK) {
            // capabilities(7): execution needs the permission of somebody, whose ever it is.
            Err(Errno::EACCES) if mode & 0o111 != 0 && overrides_permissions(process) => Ok(()),
            answer => answer,
        },
        libc::S_IFDIR => Err(Errno::EISDIR),
        _ => Err(Errno::EACCES),
    }
}

fn overrides_permissions(process: &Process) -> bool {
    let capabilities = process.capabilities().as_ref();
    capabilities
        .and_then(|sets| sets.effective().as_ref())
        .is_some_and(|effective| effective.contains(&Capability::DacOverride))
}

fn run_hook(hook: &Hook, state: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(arguments);
    }
    let environment: HashMap<_, _> = match hook.env() {
        Some(variables) => variables
            .iter()
            .filter_map(|variable| variable.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        None => env::vars().collect(),
    };
    let mut child = command
        .env_clear()
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(state.as_bytes()) {
            // A hook need not read its input.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    let timeout = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok());
    let deadline =
        timeout.map(|seconds| std::time::Instant::now() + std::time::Duration::from_secs(seconds));
    let status = loop {
        match deadline {
            None => break child.wait()?,
            Some(deadline) => {
                if let Some(status) = child.try_wait()? {
                    break status;
                }
                if std::time::Instant::now() >= deadline {
                    child.kill()?;
                    child.wait()?;
                    return Err("it did not end in time".into());
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    };
    if status.success() {
        Ok(())
    } else {
        Err(status.to_string().into())
    }
}
