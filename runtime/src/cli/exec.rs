//! `hull exec`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use hull_runtime::Runtime;
use hull_runtime::container::{ExecOptions, ExecProcess, exec, parse_capability};

use super::inherited::Inherited;
use super::{console, container_id, refuse};

/// Run one more program in a container
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Send the master of the process's terminal to this Unix socket
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// The working directory in the container
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Add to the environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// Run as this user
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Add supplementary groups
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Take the process from this file, which holds an OCI process object
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["cwd", "env", "user", "additional_gids", "no_new_privs", "cap"])]
    process: Option<PathBuf>,
    /// Return as soon as the process runs
    #[arg(short, long)]
    detach: bool,
    /// Write the pid of the process's proxy to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Refused: the guest's kernel has no SELinux
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// Refused: the guest's kernel has no AppArmor
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Set no_new_privs
    #[arg(long)]
    no_new_privs: bool,
    /// Add a capability
    #[arg(short, long, value_name = "CAP")]
    cap: Vec<String>,
    /// Hand on so many open files, from number 3 on: pipes, stream sockets, and files that are only read or written
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) preserve_fds: u32,
    /// Put the process into this cgroup below the container's own
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// Wait until the container is resumed, if it is paused
    #[arg(long)]
    ignore_paused: bool,
    /// The container's id
    id: String,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(super) fn run(
    runtime: &Runtime,
    arguments: Arguments,
    inherited: Inherited,
) -> anyhow::Result<u8> {
    refuse(&[
        (
            "--process-label",
            arguments.process_label.is_some(),
            "the guest's kernel has no SELinux",
        ),
        (
            "--apparmor",
            arguments.apparmor.is_some(),
            "the guest's kernel has no AppArmor",
        ),
        (
            "--cgroup CONTROLLER:PATH",
            arguments.cgroup.iter().any(|path| path.contains(':')),
            "the guest's cgroups are of version 2, which have all controllers in one path",
        ),
    ])?;
    let options = ExecOptions {
        id: container_id(&arguments.id)?,
        console: console(arguments.detach, arguments.console_socket.clone())?,
        stdio: None,
        files: inherited.files,
        pid_file: arguments.pid_file.clone(),
        ignore_paused: arguments.ignore_paused,
        cgroup: arguments.cgroup.clone(),
        process: process(arguments)?,
    };
    Ok(exec(runtime, &options)?)
}

fn process(arguments: Arguments) -> anyhow::Result<ExecProcess> {
    if let Some(path) = arguments.process {
        return Ok(ExecProcess::File(path));
    }
    if arguments.args.is_empty() {
        bail!("process args cannot be empty");
    }
    let caps = arguments.cap.iter().map(|name| parse_capability(name));
    Ok(ExecProcess::Like {
        args: arguments.args,
        cwd: arguments.cwd,
        env: arguments.env,
        tty: arguments.tty,
        user: arguments.user.as_deref().map(user).transpose()?,
        additional_gids: arguments.additional_gids,
        caps: caps
            .collect::<Result<_, _>>()
            .map_err(hull_runtime::Error::from)?,
        no_new_privs: arguments.no_new_privs,
    })
}

/// `UID` or `UID:GID`, both numbers, as with runc.
fn user(text: &str) -> anyhow::Result<(u32, Option<u32>)> {
    let number = |text: &str| {
        text.parse::<u32>()
            .with_context(|| format!("--user: {text:?} is not a number"))
    };
    match text.split_once(':') {
        None => Ok((number(text)?, None)),
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
    }
}
