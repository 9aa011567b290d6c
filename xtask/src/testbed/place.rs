//! Where tests run: on the host, if its own KVM can run the guest and no release of Debian is asked for, else in the
//! bed.
//!
//! That a KVM exists says little: a software-assisted one makes machines that cannot run Linux. So the guest's image is
//! booted, with this checkout's `hull-vmm`, until its agent listens. The answer is kept for this boot of the host and
//! these files.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use hull_vmm_protocol::config::{VmConfig, VsockConfig};
use hull_vmm_protocol::outcome::{Cause, Outcome};

use super::qemu;
use crate::cache::{self, Fingerprint};
use crate::debian::Release;
use crate::workspace;

/// Forces the answer.
const VARIABLE: &str = "HULL_TESTBED";

/// What a boot takes of the install prefix.
const VMM: &str = "libexec/hull/hull-vmm";
const KERNEL: &str = "share/hull/vmlinux";
const INITRAMFS: &str = "share/hull/initramfs.cpio";

/// Why the guest does not run, in an answer's entry; empty if it does.
const FAILURE: &str = "failure";

/// The agent's vsock port for calls (`hull_agent_protocol::ports::RPC`).
const AGENT_PORT: u32 = 1024;
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// The bed, where no release is asked for.
const NESTED: Place = Place::Nested(Release::Trixie);

/// Where tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Host,
    Nested(Release),
}

/// Decides where, and why, in words. `release`: what is asked for.
pub(crate) fn decide(release: Option<Release>) -> Result<(Place, String)> {
    if let Some(release) = release {
        let reason = format!("Debian {} is asked for", release.suite());
        return Ok((Place::Nested(release), reason));
    }
    match std::env::var(VARIABLE) {
        Ok(forced) => match forced.as_str() {
            "host" => Ok((Place::Host, format!("{VARIABLE}=host"))),
            "nested" => Ok((NESTED, format!("{VARIABLE}=nested"))),
            "" => probe(),
            _ => bail!("{VARIABLE} is `host` or `nested`, not {forced:?}"),
        },
        Err(std::env::VarError::NotPresent) => probe(),
        Err(error) => Err(error).context(VARIABLE),
    }
}

/// What to say when not even the bed can be made.
pub(crate) fn nowhere(why_not_host: &str) -> String {
    format!("nothing here can run the guest: not this host ({why_not_host}), and no test bed")
}

fn probe() -> Result<(Place, String)> {
    let prefix = workspace::prefix();
    if !Path::new("/dev/kvm").exists() {
        return Ok((NESTED, "the host has no /dev/kvm".to_owned()));
    }
    for file in [VMM, KERNEL, INITRAMFS] {
        if !prefix.join(file).exists() {
            let reason = format!("there is no {file} yet to try the host's KVM with");
            return Ok((NESTED, reason));
        }
    }
    // Of a KVM that cannot run the kernel, no other build of the rest makes a better one.
    let cannot = entry_name("kvm-cannot", &prefix, &[KERNEL])?;
    let trial = entry_name("kvm-trial", &prefix, &[VMM, KERNEL, INITRAMFS])?;
    let answer = if cache::has(&cannot)? {
        cache::entry(&cannot, |_| Ok(()))?
    } else {
        cache::entry(&trial, |directory| {
            eprintln!("trying whether this host's KVM runs the guest");
            let (failure, kvm_cannot) = match boot(&prefix, directory)? {
                Trial::Runs => (String::new(), false),
                Trial::KvmCannotRun(why) => (why, true),
                Trial::Failed(why) => (why, false),
            };
            fs::write(directory.join(FAILURE), &failure)?;
            if kvm_cannot {
                cache::entry(&cannot, |directory| {
                    Ok(fs::write(directory.join(FAILURE), &failure)?)
                })?;
            }
            Ok(())
        })?
    };
    let failure = fs::read_to_string(answer.join(FAILURE))?;
    if failure.is_empty() {
        Ok((Place::Host, "the host's KVM runs the guest".to_owned()))
    } else {
        let reason = format!("the host's KVM does not run the guest: {failure}");
        Ok((NESTED, reason))
    }
}

/// The cache's entry for an answer that holds for this boot of the host and these files.
fn entry_name(kind: &str, prefix: &Path, files: &[&str]) -> Result<String> {
    let mut inputs = Fingerprint::default();
    inputs.add_file("boot", Path::new("/proc/sys/kernel/random/boot_id"))?;
    for file in files {
        let metadata = fs::metadata(prefix.join(file))?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH)?;
        inputs.add(file, format!("{} {}", metadata.len(), modified.as_nanos()));
    }
    Ok(format!("testbed/{kind}-{}", inputs.name()))
}

/// What came of booting the guest.
enum Trial {
    /// Its agent listens.
    Runs,
    /// KVM itself gave up.
    KvmCannotRun(String),
    /// Anything else, which may be this build's fault.
    Failed(String),
}

/// Boots the guest until its agent listens, with all files in `directory`.
fn boot(prefix: &Path, directory: &Path) -> Result<Trial> {
    let config = VmConfig {
        vcpus: 1,
        max_vcpus: 1,
        memory_mib: 256,
        max_memory_mib: 256,
        kernel: prefix.join(KERNEL),
        initramfs: prefix.join(INITRAMFS),
        cmdline: String::new(),
        early_serial: false,
        vsock: VsockConfig {
            cid: 3,
            socket: directory.join("agent.sock"),
        },
        console_log: directory.join("console.log"),
        control_socket: directory.join("control.sock"),
        outcome: directory.join("outcome.json"),
        jail: false,
    };
    let file = directory.join("vm.json");
    fs::write(&file, serde_json::to_vec(&config)?)?;
    let log = directory.join("vmm.log");
    let mut vmm = Machine(
        Command::new(prefix.join(VMM))
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("cannot start hull-vmm")?,
    );
    let start = Instant::now();
    while !agent_listens(&config.vsock.socket) {
        if let Some(status) = vmm.0.try_wait()? {
            return Ok(match read_outcome(&config.outcome) {
                Some(outcome) if outcome.cause == Cause::KvmCannotRun => {
                    Trial::KvmCannotRun(outcome.message)
                }
                Some(outcome) => Trial::Failed(outcome.message),
                None => Trial::Failed(format!("{status}\n{}", qemu::tail(&log))),
            });
        }
        if start.elapsed() > BOOT_LIMIT {
            let limit = BOOT_LIMIT.as_secs();
            return Ok(Trial::Failed(format!("no agent within {limit} s")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(Trial::Runs)
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
fn agent_listens(socket: &Path) -> bool {
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

fn read_outcome(file: &Path) -> Option<Outcome> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}
