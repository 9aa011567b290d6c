//! `hull spec`.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use hull_runtime::container::default_spec;

/// Write a configuration to start from to config.json
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The directory to write it to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Refused: hull runs as root
    #[arg(long)]
    rootless: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    if arguments.rootless {
        bail!("--rootless: hull runs as root");
    }
    let path = arguments.bundle.join("config.json");
    let text = serde_json::to_string_pretty(&default_spec())?;
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    match file {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} exists: remove it first", path.display())
        }
        file => file
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| path.display().to_string())?,
    }
    Ok(0)
}
