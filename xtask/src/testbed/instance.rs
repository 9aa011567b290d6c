//! A running machine with a name, which commands are run in.
//!
//! Its directory, `testbed/instances/<name>` of the cache, holds three locks: `lock`, for whoever starts or ends it;
//! `use`, shared by the commands that run in it; `alive`, held by its [keeper](super::keeper) with the keeper's pid
//! inside.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::Flock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::image::Image;
use super::ssh::{self, Connection, Terminal};
use super::{locks, qemu};
use crate::debian::Release;
use crate::{cache, command, workspace};

const END_LIMIT: Duration = Duration::from_secs(30);

/// How long after a machine's end its keeper may still be about to say so.
const KEEPERS_MOMENT: Duration = Duration::from_secs(3);

/// The variables that reach commands in the machine, by the start of their names; not those that are about this host.
const PASSED_VARIABLES: [&str; 2] = ["HULL_", "RUST_"];
const HOST_VARIABLES: [&str; 3] = ["HULL_CACHE", "HULL_TESTBED", "HULL_DEBIAN_MIRROR"];

/// An instance by name, running or not.
#[derive(Debug)]
pub(crate) struct Instance {
    name: String,
    directory: PathBuf,
}

/// What a keeper leaves in the file `running` once its machine has been restored.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) image: PathBuf,
    pub(super) checkout: PathBuf,
    pub(super) ssh_port: u16,
}

/// The files of the install prefix, by their paths in it, with what tells that one has changed: size and time.
type Payload = BTreeMap<PathBuf, (u64, Duration)>;

/// An instance that runs at least until this is dropped.
#[derive(Debug)]
pub(crate) struct InUse {
    instance: Instance,
    image: Image,
    ssh_port: u16,
    _lock: Flock<File>,
}

impl Instance {
    /// The instance `name`: letters, digits, `-` and `_`.
    pub(crate) fn named(name: &str) -> Result<Instance> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        ensure!(
            (1..=40).contains(&name.len()) && name.chars().all(plain),
            "an instance is named with 1 to 40 letters, digits, `-` and `_`, not {name:?}"
        );
        Ok(Instance {
            name: name.to_owned(),
            directory: instances()?.join(name),
        })
    }

    /// The instance `name` of a release of Debian: those of others than the usual one are named after theirs.
    pub(crate) fn of_release(name: &str, release: Release) -> Result<Instance> {
        if release == Release::default() {
            Instance::named(name)
        } else {
            Instance::named(&format!("{name}-{}", release.suite()))
        }
    }

    /// All instances that were ever started.
    pub(crate) fn all() -> Result<Vec<Instance>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(instances()?)? {
            all.push(Instance::named(&entry?.file_name().to_string_lossy())?);
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn alive_lock(&self) -> PathBuf {
        self.directory.join("alive")
    }

    pub(super) fn use_lock(&self) -> PathBuf {
        self.directory.join("use")
    }

    pub(super) fn running_file(&self) -> PathBuf {
        self.directory.join("running")
    }

    /// What runs under this name, if anything does.
    pub(crate) fn running(&self) -> Result<Option<String>> {
        let _lock = locks::exclusive(&self.directory.join("lock"))?;
        if !self.is_alive()? {
            return Ok(None);
        }
        let used = locks::try_exclusive(&self.use_lock())?.is_none();
        let running = self
            .read_running()?
            .context("the keeper did not say what runs")?;
        Ok(Some(format!(
            "port {}, {}, {}",
            running.ssh_port,
            running.checkout.display(),
            if used { "in use" } else { "idle" }
        )))
    }

    /// Makes sure that it runs with `image` and this checkout, and that its `hull` is the one in `build/`. `fresh`:
    /// whatever was done in it is gone.
    pub(crate) fn start(self, image: Image, fresh: bool) -> Result<InUse> {
        fs::create_dir_all(&self.directory)?;
        let _lock = locks::exclusive(&self.directory.join("lock"))?;
        let mut in_use = locks::shared(&self.use_lock())?;
        let fits = |running: &Running| {
            running.image == image.directory() && running.checkout == workspace::root()
        };
        let running = if self.is_alive()? {
            self.read_running()?
                .filter(|running| !fresh && fits(running))
        } else {
            None
        };
        let running = match running {
            Some(running) => running,
            None => {
                if self.is_alive()? {
                    // Not while others run their commands in it.
                    drop(in_use);
                    let alone = locks::try_exclusive(&self.use_lock())?;
                    ensure!(
                        alone.is_some(),
                        "the instance {} is in use; choose another with --name",
                        self.name
                    );
                    self.end()?;
                    drop(alone);
                    in_use = locks::shared(&self.use_lock())?;
                }
                self.restore(&image)?
            }
        };
        let started = InUse {
            ssh_port: running.ssh_port,
            instance: self,
            image,
            _lock: in_use,
        };
        started.install_payload()?;
        Ok(started)
    }

    /// Ends it, whatever runs in it. True if it ran.
    pub(crate) fn stop(&self) -> Result<bool> {
        if !self.directory.exists() {
            return Ok(false);
        }
        let _lock = locks::exclusive(&self.directory.join("lock"))?;
        let alive = self.is_alive()?;
        if alive {
            self.end()?;
        }
        Ok(alive)
    }

    /// To be asked with `lock` held, for it takes the keeper's lock for a moment.
    fn is_alive(&self) -> Result<bool> {
        Ok(locks::try_exclusive(&self.alive_lock())?.is_none())
    }

    fn read_running(&self) -> Result<Option<Running>> {
        match fs::read(self.running_file()) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("cannot read what the instance's keeper says"),
        }
    }

    /// Ends the keeper, with which QEMU ends.
    fn end(&self) -> Result<()> {
        let keeper = fs::read_to_string(self.alive_lock())?;
        let pid: i32 = keeper
            .trim()
            .parse()
            .with_context(|| format!("no pid of a keeper: {keeper:?}"))?;
        // The keeper holds the lock that its pid was read from, so the pid is still its own.
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot end the keeper")?;
        let start = Instant::now();
        while self.is_alive()? {
            ensure!(
                start.elapsed() < END_LIMIT,
                "the keeper {pid} of the instance {} does not end",
                self.name
            );
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Starts a keeper, which restores the machine, and tells the machine the time.
    fn restore(&self, image: &Image) -> Result<Running> {
        for left_over in ["running", "payload", "ssh"] {
            match fs::remove_file(self.directory.join(left_over)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {left_over}"));
                }
                _ => {}
            }
        }
        let mut keeper = Command::new(std::env::current_exe()?)
            .args(["testbed", "keep", "--name", &self.name, "--image"])
            .arg(image.directory())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(self.directory.join("keeper.log"))?)
            // A signal from the terminal is for the command, not for the machine.
            .process_group(0)
            .spawn()
            .context("cannot start the instance's keeper")?;
        let mut said = String::new();
        keeper
            .stdout
            .take()
            .context("the keeper's output is a pipe")?
            .read_to_string(&mut said)?;
        if said != super::keeper::READY {
            bail!(
                "the instance {} does not start\n{}",
                self.name,
                qemu::tail(&self.directory.join("keeper.log"))
            );
        }
        let running = self
            .read_running()?
            .context("the keeper did not say what runs")?;
        let connection = Connection {
            image,
            directory: &self.directory,
            port: running.ssh_port,
        };
        connection.open()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let now = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let words = ["/usr/lib/testbed/restored", &now].map(OsString::from);
        command::quiet(&mut connection.shell(&ssh::script(&words, &[]), Terminal::No))?;
        Ok(running)
    }
}

impl InUse {
    /// The instance, which is no longer in use.
    pub(crate) fn into_instance(self) -> Instance {
        self.instance
    }

    /// What the keeper said, if the machine has ended by itself while it was in use. Waits a moment for that.
    pub(crate) fn its_end(&self) -> Result<Option<String>> {
        let start = Instant::now();
        while start.elapsed() < KEEPERS_MOMENT {
            if !self.instance.is_alive()? {
                let log = self.instance.directory.join("keeper.log");
                return Ok(Some(qemu::tail(&log)));
            }
            sleep(Duration::from_millis(100));
        }
        Ok(None)
    }

    /// The host's side of the machine's directory /hull/out.
    pub(crate) fn out(&self) -> PathBuf {
        self.instance.directory.join("out")
    }

    /// Prepares `words` to be run as root in /root.
    pub(crate) fn command(
        &self,
        words: &[OsString],
        variables: &[(OsString, OsString)],
        terminal: Terminal,
    ) -> Command {
        let passed = std::env::vars_os().filter(|(name, _)| is_passed(name));
        let mut all: Vec<_> = passed.collect();
        all.extend_from_slice(variables);
        self.connection().shell(&ssh::script(words, &all), terminal)
    }

    fn connection(&self) -> Connection<'_> {
        Connection {
            image: &self.image,
            directory: &self.instance.directory,
            port: self.ssh_port,
        }
    }

    /// Copies what changed in the checkout's `build/` since the last time into the machine.
    fn install_payload(&self) -> Result<()> {
        let prefix = workspace::prefix();
        if !prefix.exists() {
            return Ok(());
        }
        let installed = self.instance.directory.join("payload");
        let before: Payload = match fs::read(&installed) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Payload::new(),
            Err(error) => return Err(error).context("cannot read what was installed"),
        };
        let mut now = Payload::new();
        list_files(&prefix, Path::new(""), &mut now)?;
        let mut words = vec![OsString::from("/usr/lib/testbed/install-payload")];
        for (path, stamp) in &now {
            if before.get(path) != Some(stamp) {
                words.push(path.into());
            }
        }
        if words.len() > 1 {
            let script = ssh::script(&words, &[]);
            command::quiet(&mut self.connection().shell(&script, Terminal::No))?;
            fs::write(installed, serde_json::to_vec(&now)?)?;
        }
        Ok(())
    }
}

/// The exit code of a command, as a shell gives it.
pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn instances() -> Result<PathBuf> {
    let instances = cache::root()?.join("testbed/instances");
    fs::create_dir_all(&instances)?;
    Ok(instances)
}

fn is_passed(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    PASSED_VARIABLES.iter().any(|start| name.starts_with(start))
        && !HOST_VARIABLES.contains(&&*name)
}

/// Lists the files below `prefix/directory`.
fn list_files(prefix: &Path, directory: &Path, payload: &mut Payload) -> Result<()> {
    for entry in fs::read_dir(prefix.join(directory))? {
        let path = directory.join(entry?.file_name());
        let metadata = match fs::metadata(prefix.join(&path)) {
            Ok(metadata) => metadata,
            // A build has just renamed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        if metadata.is_dir() {
            list_files(prefix, &path, payload)?;
        } else if !is_being_written(&path) {
            let modified = metadata.modified()?.duration_since(UNIX_EPOCH)?;
            payload.insert(path, (metadata.len(), modified));
        }
    }
    Ok(())
}

/// What a build is writing has a name of its own until it is whole.
fn is_being_written(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "unfinished" || extension == "made")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_the_directory_of_instances() {
        for name in ["", "..", "a/b", "a b", &"a".repeat(41)] {
            assert!(Instance::named(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn variables_about_the_host_stay_there() {
        assert!(is_passed("HULL_LOG".as_ref()));
        assert!(!is_passed("HULL_CACHE".as_ref()));
        assert!(!is_passed("HOME".as_ref()));
    }
}
