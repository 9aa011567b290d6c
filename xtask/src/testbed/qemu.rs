//! QEMU of Debian 13 as a child process, run from the unpacked tree with the tree's own dynamic linker, so that the
//! host's release of Debian does not matter.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::image::Image;
use super::qmp::Qmp;
use crate::{command, workspace};

/// The machine, apart from the paths of its files. A saved state fits only the line that it was saved with.
///
/// - `thread=single`: with a thread for each CPU the machine itself meets triple faults, within seconds when its guests have
///   many exits.
/// - `-erms,-fsrm`: without the string instructions, page faults are 3.6 times faster.
/// - `restrict=on`: nothing in the machine reaches a network outside it.
/// - `-d cpu_reset`: a triple fault of the machine is in QEMU's log.
pub(super) const MACHINE: &[&str] = &[
    "-nodefaults",
    "-no-user-config",
    "-no-reboot",
    "-d",
    "cpu_reset",
    "-display",
    "none",
    "-accel",
    "tcg,thread=single,tb-size=512",
    "-M",
    "q35",
    "-cpu",
    "max,+svm,-erms,-fsrm",
    "-smp",
    "2",
    "-m",
    "6144",
    "-append",
    "console=ttyS0 root=/dev/vda rw reboot=t panic=-1 quiet mitigations=off init_on_alloc=0",
    "-netdev",
    "user,id=uplink,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22",
    "-device",
    "virtio-net-pci,netdev=uplink,romfile=",
    "-device",
    "virtio-rng-pci",
    "-serial",
    "file:console.log",
    "-qmp",
    "stdio",
];

/// A file of the machine's state that holds memory pages at fixed places, and leaves empty ones out.
const STATE_CAPABILITY: &str = "mapped-ram";
const SAVE_LIMIT: Duration = Duration::from_secs(300);
const RESTORE_LIMIT: Duration = Duration::from_secs(120);

/// A running QEMU. It is killed when this is dropped, and by the kernel when the thread that started it ends.
pub(super) struct Qemu {
    child: Child,
    qmp: Qmp,
    directory: PathBuf,
}

/// The disk of a machine, in its directory.
pub(super) const DISK: &str = "disk.qcow2";

impl Qemu {
    /// Boots the machine of `image` on `directory/disk.qcow2`. `directory` also gets the logs and the directory
    /// `out`, which the machine can write to.
    pub(super) fn boot(image: &Image, directory: &Path) -> Result<Qemu> {
        Qemu::start(image, directory, &[])
    }

    /// Starts the machine of `image` as it was when its state was saved, and lets it run.
    pub(super) fn restore(image: &Image, directory: &Path) -> Result<Qemu> {
        let mut qemu = Qemu::start(image, directory, &["-incoming", "defer"])?;
        qemu.load(&image.state())
            .with_context(|| qemu.said())
            .context("cannot restore the test bed's machine")?;
        Ok(qemu)
    }

    fn start(image: &Image, directory: &Path, further: &[&str]) -> Result<Qemu> {
        fs::create_dir_all(directory.join("out"))?;
        let log = directory.join("qemu.log");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(image.qemu())
            .arg("-L")
            .arg(image.tree().path("usr/share/qemu"))
            .arg("-L")
            .arg(image.tree().path("usr/share/seabios"))
            .args(MACHINE)
            .arg("-kernel")
            .arg(image.kernel())
            .arg("-initrd")
            .arg(image.initrd())
            .arg("-drive")
            .arg(format!("file={DISK},format=qcow2,if=virtio,cache=unsafe"))
            .arg("-virtfs")
            .arg(share("checkout", workspace::root(), ",readonly=on")?)
            .arg("-virtfs")
            .arg(share("out", &directory.join("out"), "")?)
            .args(further)
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        let mut child = command.spawn().context("cannot start setpriv")?;
        let input = child.stdin.take().context("QEMU's input is a pipe")?;
        let output = child.stdout.take().context("QEMU's output is a pipe")?;
        match Qmp::open(input, output) {
            Ok(qmp) => Ok(Qemu {
                child,
                qmp,
                directory: directory.to_owned(),
            }),
            Err(error) => {
                // It may have ended already.
                let _ = child.kill();
                child.wait()?;
                Err(error).with_context(|| tail(&log))
            }
        }
    }

    /// The host's port on 127.0.0.1 that leads to the machine's sshd.
    pub(super) fn ssh_port(&mut self) -> Result<u16> {
        let shown = self.qmp.execute(
            "human-monitor-command",
            json!({ "command-line": "info usernet" }),
        )?;
        let shown = shown.as_str().unwrap_or_default();
        forwarded_port(shown).with_context(|| format!("QEMU forwards no port:\n{shown}"))
    }

    /// Saves the machine's state into the file `state` and ends it; its disk then holds what belongs to that state.
    pub(super) fn save(mut self, state: &Path) -> Result<()> {
        self.qmp.execute("stop", json!({}))?;
        self.use_mapped_ram()?;
        // The default is meant for networks.
        self.qmp.execute(
            "migrate-set-parameters",
            json!({ "max-bandwidth": 1_u64 << 40 }),
        )?;
        self.qmp
            .execute("migrate", json!({ "uri": file_uri(state)? }))?;
        self.poll(
            SAVE_LIMIT,
            "query-migrate",
            |answer| match answer["status"].as_str() {
                Some("completed") => Ok(true),
                Some("failed" | "cancelled") => bail!("QEMU cannot save: {}", answer["error-desc"]),
                _ => Ok(false),
            },
        )?;
        let quit = self.qmp.execute("quit", json!({}));
        let status = self.child.wait()?;
        quit.with_context(|| format!("QEMU has ended by itself: {status}"))?;
        Ok(())
    }

    fn load(&mut self, state: &Path) -> Result<()> {
        self.use_mapped_ram()?;
        self.qmp
            .execute("migrate-incoming", json!({ "uri": file_uri(state)? }))?;
        self.poll(RESTORE_LIMIT, "query-status", |answer| {
            Ok(answer["status"] != "inmigrate")
        })?;
        self.qmp.execute("cont", json!({}))?;
        Ok(())
    }

    fn use_mapped_ram(&mut self) -> Result<()> {
        let capability = json!({ "capability": STATE_CAPABILITY, "state": true });
        self.qmp.execute(
            "migrate-set-capabilities",
            json!({ "capabilities": [capability] }),
        )?;
        Ok(())
    }

    fn poll(
        &mut self,
        limit: Duration,
        query: &str,
        reached: impl Fn(&Value) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        while !reached(&self.qmp.execute(query, json!({}))?)? {
            if start.elapsed() > limit {
                bail!("QEMU is not done after {} s", limit.as_secs());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// How it ended, if it has: by a signal when QEMU itself has crashed.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// The last lines of what QEMU and the machine's console said.
    pub(super) fn said(&self) -> String {
        format!(
            "{}\n{}",
            tail(&self.directory.join("qemu.log")),
            tail(&self.directory.join("console.log"))
        )
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Fails when it has ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn share(tag: &str, path: &Path, further: &str) -> Result<String> {
    let path = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    // QEMU's options end at a comma, unless it is doubled.
    let path = path.replace(',', ",,");
    Ok(format!(
        "local,id={tag},mount_tag={tag},path={path},security_model=none{further}"
    ))
}

fn file_uri(path: &Path) -> Result<String> {
    let path = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(format!("file:{path}"))
}

/// Reads a line such as `TCP[HOST_FORWARD]  12  127.0.0.1 43391  10.0.2.15  22  0  0`.
fn forwarded_port(shown: &str) -> Option<u16> {
    shown
        .lines()
        .find(|line| line.contains("HOST_FORWARD"))?
        .split_whitespace()
        .nth(3)?
        .parse()
        .ok()
}

/// The last lines of the file at `path`, or why it cannot be read.
pub(super) fn tail(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().display();
    match fs::read(path) {
        Ok(bytes) => format!(
            "{name}:\n{}",
            command::last_lines(&String::from_utf8_lossy(&bytes))
        ),
        Err(error) => format!("{name}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwarded_port_is_the_hosts() {
        let shown = "Hub -1 (n):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
                     TCP[HOST_FORWARD]   3       127.0.0.1 43391       10.0.2.15    22     0     0\r\n";
        assert_eq!(forwarded_port(shown), Some(43391));
        assert_eq!(forwarded_port("Hub -1 (n):\r\n"), None);
    }

    #[test]
    fn a_comma_in_a_shared_path_is_no_option() {
        let option = share("out", Path::new("/a,readonly=on"), "").unwrap();
        assert!(option.contains("path=/a,,readonly=on,"), "{option}");
    }
}
