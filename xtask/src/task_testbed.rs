//! `cargo xtask testbed`: the machine that tests run on, described in `tests/testbed/README.md`.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::Command;
use std::slice;

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::debian::Release;
use crate::testbed::cases::{self, Selection};
use crate::testbed::instance::exit_code;
use crate::testbed::place::{self, Place};
use crate::testbed::{Image, Instance, Terminal, keeper};
use crate::workspace;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make the image that machines are restored from, if it is not up to date.
    Build {
        /// The release of Debian in it.
        #[arg(long, default_value = "trixie")]
        release: Release,
    },
    /// Run a command as root where KVM runs Linux, with this checkout's hull in the PATH.
    Exec {
        #[command(flatten)]
        machine: Machine,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Open a shell there.
    Shell {
        #[command(flatten)]
        machine: Machine,
    },
    /// Build the cases and run them there.
    Test {
        /// The machine's name.
        #[arg(long, default_value = "cases")]
        name: String,
        #[command(flatten)]
        debian: Debian,
        /// Leave the machine running afterwards.
        #[arg(long)]
        keep: bool,
        /// Among how many machines the cases are divided.
        #[arg(long, default_value_t = 2)]
        machines: usize,
        /// How many cases run at the same time in a machine.
        #[arg(long, default_value_t = 1)]
        threads: u16,
        /// Only cases whose name contains this.
        filter: Option<String>,
        /// Options for the test binaries.
        #[arg(last = true)]
        options: Vec<OsString>,
    },
    /// End a machine, and all that runs in it.
    Stop {
        #[arg(long, default_value = "default")]
        name: String,
        #[command(flatten)]
        debian: Debian,
        /// End all of them.
        #[arg(long, conflicts_with_all = ["name", "release"])]
        all: bool,
    },
    /// Say where commands would run, and which machines there are.
    Status,
    /// The process that a machine lives in.
    #[command(hide = true)]
    Keep {
        #[arg(long)]
        name: String,
        #[arg(long)]
        image: PathBuf,
    },
}

#[derive(clap::Args)]
struct Debian {
    /// A machine of this release of Debian, whatever the host can run.
    #[arg(long)]
    release: Option<Release>,
}

#[derive(clap::Args)]
struct Machine {
    /// The machine's name. Machines of different names run side by side; each takes up to 6 GiB.
    #[arg(long, default_value = "default")]
    name: String,
    #[command(flatten)]
    debian: Debian,
    /// Restore it first, even if it runs.
    #[arg(long)]
    fresh: bool,
}

/// Runs a script of this checkout in a freshly restored machine, or on the host, and ends this process with its exit
/// code.
pub(crate) fn exec_script(machine: &str, script: &str, arguments: &[OsString]) -> Result<()> {
    let path = workspace::root().join(script);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut words: Vec<OsString> = vec!["bash".into(), "-c".into(), text.into(), script.into()];
    words.extend_from_slice(arguments);
    let machine = Machine {
        name: machine.to_owned(),
        debian: Debian { release: None },
        fresh: true,
    };
    exec(&machine, &words)
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.action {
        Action::Build { release } => Image::build(*release).map(drop),
        Action::Exec { machine, command } => exec(machine, command),
        Action::Shell { machine } => exec(machine, &["bash".into()]),
        Action::Test {
            name,
            debian,
            keep,
            machines,
            threads,
            filter,
            options,
        } => {
            let threads = format!("--test-threads={threads}").into();
            cases::run(&Selection {
                name,
                release: debian.release,
                machines: *machines,
                filter: filter.as_deref(),
                options: [slice::from_ref(&threads), options].concat(),
                keep: *keep,
            })
        }
        Action::Stop { name, debian, all } => stop(name, debian.release, *all),
        Action::Status => status(),
        Action::Keep { name, image } => keeper::keep(name, image.clone()),
    }
}

/// Runs the command and ends this process with its exit code.
fn exec(machine: &Machine, words: &[OsString]) -> Result<()> {
    let (place, reason) = place::decide(machine.debian.release)?;
    let started;
    let mut command = match place {
        Place::Host => {
            let (program, arguments) = words.split_first().context("a command has a word")?;
            let mut command = Command::new(program);
            command
                .args(arguments)
                .env("PATH", cases::path_with_prefix()?);
            command
        }
        Place::Nested(release) => {
            let image = Image::build(release).with_context(|| place::nowhere(&reason))?;
            started = Instance::of_release(&machine.name, release)?.start(image, machine.fresh)?;
            let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
            let (terminal, variables) = if terminal {
                let term = std::env::var_os("TERM").unwrap_or_else(|| "dumb".into());
                (Terminal::Yes, vec![("TERM".into(), term)])
            } else {
                (Terminal::No, Vec::new())
            };
            started.command(words, &variables, terminal)
        }
    };
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    std::process::exit(exit_code(status));
}

fn stop(name: &str, release: Option<Release>, all: bool) -> Result<()> {
    let instances = if all {
        Instance::all()?
    } else {
        vec![Instance::of_release(name, release.unwrap_or_default())?]
    };
    for instance in instances {
        if instance.stop()? {
            eprintln!("ended {}", instance.name());
        }
    }
    Ok(())
}

fn status() -> Result<()> {
    let (place, reason) = place::decide(None)?;
    println!(
        "commands run {}: {reason}",
        match place {
            Place::Host => "on this host",
            Place::Nested(_) => "in a machine",
        }
    );
    for instance in Instance::all()? {
        if let Some(running) = instance.running()? {
            println!("{}: {running}", instance.name());
        }
    }
    Ok(())
}
