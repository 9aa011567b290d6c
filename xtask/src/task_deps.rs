//! `cargo xtask deps`: what a build and the tests need of the host, on Debian 12 and 13.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{command, workspace};

#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// Debian's packages, the same names in Debian 12 and 13.
const PACKAGES: [&str; 25] = [
    // The workspace and the agent's static build.
    "binutils",
    "ca-certificates",
    "gcc",
    "git",
    "libc6-dev",
    "libseccomp-dev",
    "make",
    "pkg-config",
    // The guest's kernel.
    "bc",
    "bison",
    "cpio",
    "flex",
    "libelf-dev",
    "xz-utils",
    // The test bed: Debian 13's tree, its disk, and the way into it.
    "debian-archive-keyring",
    "e2fsprogs",
    "mmdebstrap",
    "openssh-client",
    "uidmap",
    // Tests, the demonstration and the cases on the host itself, in network namespaces of their own.
    "busybox-static",
    "iproute2",
    "iputils-ping",
    "jq",
    "procps",
    "util-linux",
];

/// cargo's subcommands that `cargo xtask ci` runs, and the components of rustup that bring them.
const COMPONENTS: [(&str, &str); 2] = [("fmt", "rustfmt"), ("clippy", "clippy")];

pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    let missing = missing_packages()?;
    if !missing.is_empty() {
        install(&missing)?;
        let still_missing = missing_packages()?;
        if !still_missing.is_empty() {
            bail!("apt did not install {}", still_missing.join(" "));
        }
    }
    for (subcommand, component) in COMPONENTS {
        if command::quiet(workspace::cargo().args([subcommand, "--version"])).is_err() {
            add_component(component)?;
        }
    }
    Ok(())
}

fn missing_packages() -> Result<Vec<&'static str>> {
    // dpkg-query fails when it knows nothing of a package, and still tells of the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(PACKAGES)
        .output()
        .context("cannot start dpkg-query: hull is built on Debian")?;
    let installed = String::from_utf8_lossy(&output.stdout);
    let is_installed = |package: &str| {
        installed
            .lines()
            .any(|line| line == format!("{package} installed"))
    };
    Ok(PACKAGES
        .into_iter()
        .filter(|package| !is_installed(package))
        .collect())
}

fn install(packages: &[&str]) -> Result<()> {
    eprintln!("installing {}", packages.join(" "));
    let by_hand = format!("as root: apt-get install {}", packages.join(" "));
    command::quiet(as_root("apt-get").arg("update")).with_context(|| by_hand.clone())?;
    command::quiet(
        as_root("apt-get")
            .args(["install", "--yes", "--no-install-recommends", "--no-remove"])
            .args(packages),
    )
    .context(by_hand)
}

/// A program that runs as root: by sudo, if it does not ask for a password, where this is not root.
fn as_root(program: &str) -> Command {
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("env")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "env"]);
        sudo
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", program]);
    command
}

fn add_component(component: &str) -> Result<()> {
    eprintln!("adding {component}");
    command::quiet(
        Command::new("rustup")
            .args(["component", "add", component])
            .current_dir(workspace::root()),
    )
    .with_context(|| {
        format!("cargo has no {component} here; it comes with rustup or as a package of that name")
    })
}
