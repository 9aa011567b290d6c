//! Debian's releases, where their packages come from, and packages of Debian 13, whatever Debian the host runs.
//!
//! apt is used with lists and a cache of our own, so neither root nor a change to the host's
//! configuration is needed. The mirror is the one that the host's own apt uses for Debian, or
//! `$HULL_DEBIAN_MIRROR`. Signatures are checked with the host's Debian keyring.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{cache, command};

/// The release that the guest's kernel comes from.
const SUITE: &str = Release::Trixie.suite();

const LISTS_ARE_FRESH: Duration = Duration::from_secs(24 * 60 * 60);

const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// A release of Debian, by the name of its suite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Release {
    /// Debian 12
    Bookworm,
    /// Debian 13
    #[default]
    Trixie,
    /// Unstable, which changes every day
    Sid,
}

impl Release {
    pub(crate) const fn suite(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

/// Where the packages of all releases come from.
pub(crate) struct Mirror {
    pub(crate) address: String,
    /// What the archive's signatures are checked with.
    pub(crate) keyring: PathBuf,
}

impl Mirror {
    /// The one that this host uses.
    pub(crate) fn of_host() -> Result<Mirror> {
        let keyring = KEYRINGS
            .iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
            .context("no Debian keyring here: install debian-archive-keyring")?;
        let address = address()?;
        Ok(Mirror { address, keyring })
    }
}

/// apt's view of Debian 13.
pub(crate) struct Archive {
    /// Holds `sources.sources`, `lists`, `cache` and an empty `status`.
    directory: PathBuf,
    mirror: Mirror,
}

impl Archive {
    /// Opens the archive below the cache's directory, and fetches the lists of packages if there
    /// are none yet.
    pub(crate) fn open() -> Result<Archive> {
        let directory = cache::root()?.join("debian").join(SUITE);
        for needed in ["lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(directory.join(needed))?;
        }
        let archive = Archive {
            mirror: Mirror::of_host()?,
            directory,
        };
        fs::write(archive.directory.join("sources.sources"), archive.sources())?;
        fs::write(archive.directory.join("status"), "")?;

        let updated = archive.directory.join("updated");
        if fs::read_to_string(&updated).ok().as_deref() != Some(archive.sources().as_str()) {
            archive.update()?;
        }
        Ok(archive)
    }

    /// Fetches the lists of packages anew.
    pub(crate) fn update(&self) -> Result<()> {
        let _lock = self.lock()?;
        eprintln!(
            "fetching Debian {SUITE}'s lists of packages from {}",
            self.mirror.address
        );
        command::quiet(self.apt("apt-get").args(["update", "--error-on=any"]))?;
        fs::write(self.directory.join("updated"), self.sources())?;
        Ok(())
    }

    /// Fetches the lists of packages anew if they are more than a day old. To be done before
    /// something is fetched, since a mirror holds only a package's newest version.
    pub(crate) fn update_if_stale(&self) -> Result<()> {
        let updated = fs::metadata(self.directory.join("updated"))?.modified()?;
        match updated.elapsed() {
            Ok(age) if age < LISTS_ARE_FRESH => Ok(()),
            _ => self.update(),
        }
    }

    /// The version of `package` that [`Archive::fetch`] would bring.
    pub(crate) fn version(&self, package: &str) -> Result<String> {
        let shown =
            command::output(
                self.apt("apt-cache")
                    .args(["show", "--no-all-versions", package]),
            )?;
        shown
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .map(str::to_owned)
            .with_context(|| format!("Debian {SUITE} has no package {package}"))
    }

    /// Fetches one package, without those that it depends on, unless it was fetched before.
    pub(crate) fn fetch(&self, package: &str) -> Result<PathBuf> {
        let version = self.version(package)?;
        // apt writes the colon of an epoch as %3a in a file's name.
        let stem = format!("{package}_{}_", version.replace(':', "%3a"));
        if let Some(found) = self.fetched(&stem)? {
            return Ok(found);
        }
        let _lock = self.lock()?;
        if let Some(found) = self.fetched(&stem)? {
            return Ok(found);
        }
        eprintln!("fetching {package} {version}");
        let unfinished = self.directory.join("packages/unfinished");
        cache::remove_tree(&unfinished)?;
        fs::create_dir(&unfinished)?;
        let mut download = self.apt("apt-get");
        download
            .args(["download", package])
            .current_dir(&unfinished);
        if command::quiet(&mut download).is_err() {
            // The lists may be older than the mirror: packages are replaced at point releases.
            bail!(
                "cannot fetch {package} {version}; if the mirror no longer has it, remove {} and \
                 run again",
                self.directory.join("updated").display()
            );
        }
        for file in fs::read_dir(&unfinished)? {
            let file = file?;
            fs::rename(
                file.path(),
                self.directory.join("packages").join(file.file_name()),
            )?;
        }
        self.fetched(&stem)?
            .with_context(|| format!("apt fetched no {package} {version}"))
    }

    fn fetched(&self, stem: &str) -> Result<Option<PathBuf>> {
        for file in fs::read_dir(self.directory.join("packages"))? {
            let file = file?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(stem) && name.ends_with(".deb") {
                return Ok(Some(file.path()));
            }
        }
        Ok(None)
    }

    fn lock(&self) -> Result<nix::fcntl::Flock<fs::File>> {
        cache::lock(&self.directory.join("lock"))
    }

    fn sources(&self) -> String {
        format!(
            "Types: deb\nURIs: {}\nSuites: {SUITE} {SUITE}-updates\nComponents: main\n\
             Signed-By: {}\n",
            self.mirror.address,
            self.mirror.keyring.display()
        )
    }

    /// One of apt's programs, on this archive's directories.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        for (option, value) in [
            ("Dir::Etc::SourceParts", Path::new("/dev/null")),
            (
                "Dir::Etc::SourceList",
                &self.directory.join("sources.sources"),
            ),
            ("Dir::State::Lists", &self.directory.join("lists")),
            ("Dir::State::Status", &self.directory.join("status")),
            ("Dir::Cache", &self.directory.join("cache")),
            // As root, apt would fetch as the user _apt, who cannot enter a private cache.
            ("APT::Sandbox::User", Path::new("root")),
            ("APT::Keep-Downloaded-Packages", Path::new("true")),
        ] {
            command
                .arg("--option")
                .arg(format!("{option}={}", value.display()));
        }
        command
    }
}

/// Unpacks the files of the package `deb` into the directory `into`.
pub(crate) fn unpack(deb: &Path, into: &Path) -> Result<()> {
    command::quiet(Command::new("dpkg-deb").arg("--extract").args([deb, into]))
}

/// The address of Debian's main archive: `$HULL_DEBIAN_MIRROR`, or the one in the host's own sources.
fn address() -> Result<String> {
    if let Ok(mirror) = std::env::var("HULL_DEBIAN_MIRROR")
        && !mirror.is_empty()
    {
        return Ok(mirror);
    }
    let targets = command::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    mirror_among(&targets).context(
        "this host's apt has no mirror of Debian in its sources: set HULL_DEBIAN_MIRROR to one",
    )
}

/// Picks the main archive from lines of `origin <tab> label <tab> address`. Origin and label come
/// from the lists, and are empty before the host's first `apt-get update`.
fn mirror_among(targets: &str) -> Option<String> {
    let fields = |line: &str| {
        let mut fields = line.split('\t').map(str::to_owned);
        Some((fields.next()?, fields.next()?, fields.next()?))
    };
    let targets: Vec<_> = targets.lines().filter_map(fields).collect();
    targets
        .iter()
        .find(|(origin, label, _)| origin == "Debian" && label == "Debian")
        .or_else(|| {
            targets
                .iter()
                .find(|(.., address)| address.ends_with("/debian/"))
        })
        .map(|(.., address)| address.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_is_the_main_archive_and_not_security_updates() {
        let targets = "Debian\tDebian-Security\thttp://mirror.example/debian-security/\n\
                       Debian\tDebian\thttp://mirror.example/debian/\n";
        assert_eq!(
            mirror_among(targets).as_deref(),
            Some("http://mirror.example/debian/")
        );
    }

    #[test]
    fn mirror_is_known_by_its_address_before_the_first_update() {
        let targets = "\t\thttp://other.example/tools/\n\t\thttp://mirror.example/debian/\n";
        assert_eq!(
            mirror_among(targets).as_deref(),
            Some("http://mirror.example/debian/")
        );
        assert_eq!(mirror_among("\t\thttp://other.example/tools/\n"), None);
    }
}
