//! The process that one instance lives in: it restores the machine, and ends it when nobody has used it for a while.
//! When it ends, however it ends, the kernel ends QEMU.

use std::fs;
use std::io::Write;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::image::Image;
use super::instance::{Instance, Running};
use super::locks;
use super::qemu::Qemu;
use crate::workspace;

/// What the keeper writes to its standard output, which it then closes.
pub(super) const READY: &str = "ready\n";

/// How long a machine that nobody uses stays.
const IDLE_LIMIT: Duration = Duration::from_secs(15 * 60);
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Restores the instance `name` from the image in `image`, and stays with it to its end.
pub(crate) fn keep(name: &str, image: PathBuf) -> Result<()> {
    close_inherited_files()?;
    let instance = Instance::named(name)?;
    // Dropped last: whoever wants to use an idle machine waits until it has ended, and then starts it anew.
    let _ending;
    let mut alive = locks::try_exclusive(&instance.alive_lock())?
        .with_context(|| format!("the instance {name} runs already"))?;
    alive.set_len(0)?;
    write!(alive, "{}", std::process::id())?;

    let image = Image::at(image);
    image.make_disk(instance.directory())?;
    let mut machine = Qemu::restore(&image, instance.directory())?;
    let running = Running {
        ssh_port: machine.ssh_port()?,
        checkout: workspace::root().to_owned(),
        image: image.directory().to_owned(),
    };
    fs::write(instance.running_file(), serde_json::to_vec(&running)?)?;
    announce()?;

    let mut last_used = Instant::now();
    let status = loop {
        if let Some(status) = machine.ended()? {
            break status;
        }
        match locks::try_exclusive(&instance.use_lock())? {
            None => last_used = Instant::now(),
            Some(unused) if last_used.elapsed() > IDLE_LIMIT => {
                _ending = unused;
                return Ok(());
            }
            Some(_unused) => {}
        }
        sleep(CHECK_INTERVAL);
    };
    eprintln!(
        "the machine has ended by itself: {status}\n{}",
        machine.said()
    );
    Ok(())
}

/// Closes what the starter's own callers left open (a pipe, say, whose reader waits for its end).
fn close_inherited_files() -> Result<()> {
    let mut open = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_string_lossy().parse::<RawFd>());
    }
    for fd in open.into_iter().filter(|&fd| fd > 2) {
        // One was the directory's, and is closed by now.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// Tells whoever started this keeper that the machine runs.
fn announce() -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(READY.as_bytes())?;
    stdout.flush()?;
    // The starter reads to the end of the file.
    nix::unistd::dup2_stdout(fs::File::open("/dev/null")?)?;
    Ok(())
}
