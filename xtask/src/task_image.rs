//! `cargo xtask image`: the guest's kernel and initramfs, in `build/share/hull/`.

use std::fs;

use anyhow::Result;

use crate::image::{agent, initramfs, kernel};
use crate::{cache, workspace};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Build only the kernel.
    #[arg(long)]
    kernel_only: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    install_kernel()?;
    if !arguments.kernel_only {
        install_initramfs()?;
    }
    Ok(())
}

/// Makes `vmlinux` and `initramfs.cpio`, and does little when both are up to date.
pub(crate) fn install() -> Result<()> {
    install_kernel()?;
    install_initramfs()
}

fn install_kernel() -> Result<()> {
    cache::install(
        &kernel::build(&[kernel::CONFIG])?,
        &workspace::prefix().join("share/hull/vmlinux"),
    )
}

fn install_initramfs() -> Result<()> {
    let share = workspace::prefix().join("share/hull");
    fs::create_dir_all(&share)?;
    let agent = agent::build()?;
    let made = share.join("initramfs.made");
    initramfs::write(&agent, &made)?;
    cache::install(&made, &share.join("initramfs.cpio"))?;
    fs::remove_file(made)?;
    Ok(())
}
