//! Where tests run: on the host, if its own KVM can run the guest, else in the bed.
//!
//! That a KVM exists says little: a software-assisted one makes machines that cannot run Linux. So the guest's image is
//! booted, with this checkout's `hull-vmm`, until its agent listens. The answer is kept for this boot of the host and
//! these files.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::qemu;
use crate::cache::{self, Fingerprint};
use crate::workspace;

/// Forces the answer.
const VARIABLE: &str = "HULL_TESTBED";

/// What a boot takes of the install prefix.
const VMM: &str = "libexec/hull/hull-vmm";
const KERNEL: &str = "share/hull/vmlinux";
const INITRAMFS: &str = "share/hull/initramfs.cpio";

/// The agent's vsock port for calls (`hull_agent_protocol::ports::RPC`).
const AGENT_PORT: u32 = 1024;
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Where tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Host,
    Nested,
}

/// Decides where, and why, in words.
pub(crate) fn decide() -> Result<(Place, String)> {
    match std::env::var(VARIABLE) {
        Ok(forced) => match forced.as_str() {
            "host" => Ok((Place::Host, format!("{VARIABLE}=host"))),
            "nested" => Ok((Place::Nested, format!("{VARIABLE}=nested"))),
            "" => probe(),
            _ => bail!("{VARIABLE} is `host` or `nested`, not {forced:?}"),
        },
        Err(std::env::VarError::NotPresent) => probe(),
        Err(error) => Err(error).context(VARIABLE),
    }
}

fn probe() -> Result<(Place, String)> {
    let prefix = workspace::prefix();
    if !Path::new("/dev/kvm").exists() {
        return Ok((Place::Nested, "the host has no /dev/kvm".to_owned()));
    }
    for file in [VMM, KERNEL, INITRAMFS] {
        if !prefix.join(file).exists() {
            let reason = format!("there is no {file} yet to try the host's KVM with");
            return Ok((Place::Nested, reason));
        }
    }
    let answer = cache::entry(&probe_name(&prefix)?, |directory| {
        eprintln!("trying whether this host's KVM runs the guest");
        let failure = match boot(&prefix, directory) {
            Ok(()) => String::new(),
            Err(error) => format!("{error:#}"),
        };
        fs::write(directory.join("failure"), failure)?;
        Ok(())
    })?;
    let failure = fs::read_to_string(answer.join("failure"))?;
    if failure.is_empty() {
        Ok((Place::Host, "the host's KVM runs the guest".to_owned()))
    } else {
        let reason = format!("the host's KVM does not run the guest: {failure}");
        Ok((Place::Nested, reason))
    }
}

fn probe_name(prefix: &Path) -> Result<String> {
    let mut inputs = Fingerprint::default();
    inputs.add_file("boot", Path::new("/proc/sys/kernel/random/boot_id"))?;
    for file in [VMM, KERNEL, INITRAMFS] {
        let metadata = fs::metadata(prefix.join(file))?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH)?;
        inputs.add(file, format!("{} {}", metadata.len(), modified.as_nanos()));
    }
    Ok(format!("testbed/probe-{}", inputs.name()))
}

/// Boots the guest until its agent listens, with all files in `directory`.
fn boot(prefix: &Path, directory: &Path) -> Result<()> {
    let socket = directory.join("agent.sock");
    let outcome = directory.join("outcome.json");
    let config = directory.join("vm.json");
    fs::write(
        &config,
        serde_json::to_vec(&json!({
            "vcpus": 1,
            "max_vcpus": 1,
            "memory_mib": 256,
            "kernel": prefix.join(KERNEL),
            "initramfs": prefix.join(INITRAMFS),
            "vsock": { "cid": 3, "socket": socket },
            "console_log": directory.join("console.log"),
            "control_socket": directory.join("control.sock"),
            "outcome": outcome,
            "jail": false,
        }))?,
    )?;
    let log = directory.join("vmm.log");
    let mut vmm = Machine(
        Command::new(prefix.join(VMM))
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("cannot start hull-vmm")?,
    );
    let start = Instant::now();
    while !agent_listens(&socket) {
        if let Some(status) = vmm.0.try_wait()? {
            bail!(
                "{}",
                why_it_ended(&outcome).unwrap_or_else(|| format!("{status}\n{}", qemu::tail(&log)))
            );
        }
        if start.elapsed() > BOOT_LIMIT {
            bail!("no agent within {} s", BOOT_LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A VMM that does not outlive the trial.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails when it has ended already, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks for a connection to the agent; any failure means that the guest is not that far.
fn agent_listens(socket: &PathBuf) -> bool {
    let answer = || -> std::io::Result<[u8; 3]> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes())?;
        let mut answer = [0; 3];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    answer().is_ok_and(|answer| &answer == b"OK ")
}

fn why_it_ended(outcome: &Path) -> Option<String> {
    let outcome: Value = serde_json::from_slice(&fs::read(outcome).ok()?).ok()?;
    Some(outcome["message"].as_str()?.to_owned())
}
