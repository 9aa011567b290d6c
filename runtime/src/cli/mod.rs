//! The command line: one file for each verb, which turns its arguments into one call of the library and prints the
//! answer. Options are named as runc names them; what hull cannot do is refused, and what has no meaning for a VM and
//! does no harm is taken (each option says so).

mod create;
mod delete;
mod events;
mod exec;
mod features;
mod inherited;
mod kill;
mod list;
mod metrics;
mod pause;
mod ps;
mod resume;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use anyhow::{Context, anyhow, bail};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use hull_runtime::bundle::NEWEST_OCI_VERSION;
use hull_runtime::config::Config;
use hull_runtime::container::{Console, ContainerId};
use hull_runtime::logging::LogSettings;
use hull_runtime::notify;
use hull_runtime::store::Store;
use hull_runtime::{Runtime, close_on_exec_from, own_program};
use inherited::{Inherited, sockets_of_service};

/// Where state is kept if nothing else is said.
const DEFAULT_ROOT: &str = "/run/hull";

/// As runc tells its own: callers read the second line too.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "version {}\nspec: {NEWEST_OCI_VERSION}",
        env!("CARGO_PKG_VERSION")
    )
});

/// Runs containers, each pod of them in its own virtual machine.
#[derive(Parser)]
#[command(name = "hull", version = VERSION.as_str(), disable_version_flag = true, disable_help_subcommand = true, arg_required_else_help = true)]
struct Cli {
    /// Print the version
    #[arg(short, long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options before the verb.
#[derive(Args)]
struct Global {
    /// The state directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT)]
    root: PathBuf,
    /// Append messages to this file instead of writing them to standard error
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// The form of messages
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Write messages of level debug too, with how long each phase of a start took
    #[arg(long)]
    debug: bool,
    /// The configuration file [default: /etc/hull/config.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "HULL_CONFIG")]
    config: Option<PathBuf>,
    /// Have systemd make the containers' cgroups on the host
    #[arg(long)]
    systemd_cgroup: bool,
    /// Only "auto" and "false" are taken: hull runs as root
    #[arg(long, value_name = "VALUE", default_value = "auto")]
    rootless: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Verb {
    Create(create::Arguments),
    Delete(delete::Arguments),
    #[command(hide = true)]
    Checkpoint(Unsupported),
    Events(events::Arguments),
    Exec(Box<exec::Arguments>),
    Features(features::Arguments),
    Kill(kill::Arguments),
    List(list::Arguments),
    Metrics(metrics::Arguments),
    Pause(pause::Arguments),
    Ps(ps::Arguments),
    #[command(hide = true)]
    Restore(Unsupported),
    Resume(resume::Arguments),
    Run(run::Arguments),
    Spec(spec::Arguments),
    Start(start::Arguments),
    State(state::Arguments),
    Update(Box<update::Arguments>),
}

/// A verb of runc that hull refuses, whatever its options.
#[derive(Args)]
struct Unsupported {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _all: Vec<String>,
}

/// Runs the verb that this process's arguments name.
pub(crate) fn main() -> ExitCode {
    if let Some(code) = own_program::enter() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // --help and --version are "errors" that succeed. Nobody may read either.
            let _ = error.print();
            return usage_code(error.kind()).into();
        }
    };
    let (name, failure_code) = cli.verb.about();
    let log = cli.global.log_settings();
    // Before anything is opened, which could be taken for the caller's.
    let inherited = cli.verb.inherited();
    if let Err(error) = log.init() {
        complain(name, &format!("open the log: {error}"));
        return failure_code.into();
    }
    match inherited.and_then(|inherited| cli.run(log.clone(), inherited)) {
        Ok(code) => code.into(),
        Err(error) => {
            let report = report(&error);
            // Standard error has it in any case, and only once.
            if log.path.is_some() {
                tracing::error!("{name} failed: {report}");
            }
            complain(name, &report);
            let code = error
                .downcast_ref::<hull_runtime::Error>()
                .map_or(failure_code, |error| error.exit_code(failure_code));
            code.into()
        }
    }
}

/// What runc exits with for words that name nothing to do.
fn usage_code(kind: clap::error::ErrorKind) -> u8 {
    use clap::error::ErrorKind;
    match kind {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => 0,
        ErrorKind::InvalidSubcommand => 3,
        _ => 1,
    }
}

fn complain(verb: &str, report: &str) {
    // With standard error closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "hull {verb} failed: {report}");
}

fn report(error: &anyhow::Error) -> String {
    match error.downcast_ref::<hull_runtime::Error>() {
        Some(error) => error.report(),
        None => format!("{error:#}"),
    }
}

impl Verb {
    /// Its name, and its exit code when it fails for no reason that has a code of its own.
    fn about(&self) -> (&'static str, u8) {
        match self {
            Self::Create(_) => ("create", 1),
            Self::Delete(_) => ("delete", 1),
            Self::Checkpoint(_) => ("checkpoint", 1),
            Self::Events(_) => ("events", 1),
            Self::Exec(_) => ("exec", 255),
            Self::Features(_) => ("features", 1),
            Self::Kill(_) => ("kill", 1),
            Self::List(_) => ("list", 1),
            Self::Metrics(_) => ("metrics", 1),
            Self::Pause(_) => ("pause", 1),
            Self::Ps(_) => ("ps", 1),
            Self::Restore(_) => ("restore", 1),
            Self::Resume(_) => ("resume", 1),
            Self::Run(_) => ("run", 1),
            Self::Spec(_) => ("spec", 1),
            Self::Start(_) => ("start", 1),
            Self::State(_) => ("state", 1),
            Self::Update(_) => ("update", 1),
        }
    }
}

impl Verb {
    /// What the caller has left open for the process that the verb makes.
    fn inherited(&self) -> anyhow::Result<Inherited> {
        let of_service = sockets_of_service();
        match self {
            Self::Create(create) => Inherited::take(of_service, create.preserve_fds),
            Self::Run(run) => Inherited::take(of_service, run.create.preserve_fds),
            Self::Exec(exec) => Inherited::take(0, exec.preserve_fds),
            _ => Ok(Inherited::default()),
        }
    }
}

impl Cli {
    fn run(self, log: LogSettings, inherited: Inherited) -> anyhow::Result<u8> {
        match self.verb {
            Verb::Features(arguments) => return features::run(&arguments),
            Verb::Spec(arguments) => return spec::run(&arguments),
            Verb::Checkpoint(_) | Verb::Restore(_) => {
                bail!("a VM cannot be checkpointed by the programs in it")
            }
            _ => {}
        }
        let runtime = self.global.runtime(log)?;
        match self.verb {
            Verb::Create(arguments) => create::run(&runtime, arguments, inherited),
            Verb::Delete(arguments) => delete::run(&runtime, &arguments),
            Verb::Events(arguments) => events::run(&runtime, &arguments),
            Verb::Exec(arguments) => exec::run(&runtime, *arguments, inherited),
            Verb::Kill(arguments) => kill::run(&runtime, &arguments),
            Verb::List(arguments) => list::run(&runtime, &arguments),
            Verb::Metrics(arguments) => metrics::run(&runtime, &arguments),
            Verb::Pause(arguments) => pause::run(&runtime, &arguments),
            Verb::Ps(arguments) => ps::run(&runtime, &arguments),
            Verb::Resume(arguments) => resume::run(&runtime, &arguments),
            Verb::Run(arguments) => run::run(&runtime, arguments, inherited),
            Verb::Start(arguments) => start::run(&runtime, &arguments),
            Verb::State(arguments) => state::run(&runtime, &arguments),
            Verb::Update(arguments) => update::run(&runtime, *arguments),
            Verb::Features(_) | Verb::Spec(_) | Verb::Checkpoint(_) | Verb::Restore(_) => Ok(0),
        }
    }
}

impl Global {
    fn log_settings(&self) -> LogSettings {
        LogSettings {
            path: self.log.clone(),
            json: self.log_format == LogFormat::Json,
            debug: self.debug,
        }
    }

    fn runtime(&self, mut log: LogSettings) -> anyhow::Result<Runtime> {
        if !matches!(self.rootless.as_str(), "auto" | "false") {
            bail!("--rootless {}: hull runs as root", self.rootless);
        }
        // What a caller left open is not for hull-vmm, which a guest may take over.
        close_on_exec_from(3).context("close_range")?;
        if let Some(path) = &log.path {
            // Process proxies work in another directory.
            log.path = Some(std::path::absolute(path)?);
        }
        let root = std::path::absolute(&self.root)
            .with_context(|| format!("--root {}", self.root.display()))?;
        Ok(Runtime {
            store: Store::new(root),
            systemd_cgroup: self.systemd_cgroup,
            config: Config::load(self.config.as_deref()).map_err(hull_runtime::Error::from)?,
            log,
        })
    }
}

/// Reads a container's id.
fn container_id(text: &str) -> anyhow::Result<ContainerId> {
    Ok(text
        .parse::<ContainerId>()
        .map_err(hull_runtime::Error::from)?)
}

/// `--detach` and `--console-socket`.
fn console(detach: bool, socket: Option<PathBuf>) -> anyhow::Result<Console> {
    match (detach, socket) {
        (true, socket) => Ok(Console::Detached(socket)),
        (false, None) => Ok(Console::Foreground),
        (false, Some(_)) => Err(anyhow!(
            "cannot use console socket if hull will not detach or allocate tty"
        )),
    }
}

/// Refuses the first option that is given: each with its name, whether it is, and why hull cannot do what it says.
fn refuse(options: &[(&str, bool, &str)]) -> anyhow::Result<()> {
    match options.iter().find(|(_, given, _)| *given) {
        Some((option, _, reason)) => bail!("{option}: {reason}"),
        None => Ok(()),
    }
}

/// The socket of the service manager whose service this command is.
fn service_manager() -> Option<OsString> {
    std::env::var_os(notify::VARIABLE).filter(|address| !address.is_empty())
}

/// Prints an answer; a reader that has gone is an error like any other.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("standard output")
}

/// Prints an answer as JSON in one line, as runc does where programs are to read it.
fn print_json_line(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}

/// Prints an answer as JSON that people can read.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn options_do_not_contradict_one_another() {
        Cli::command().debug_assert();
    }
}
