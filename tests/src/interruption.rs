//! Commands that are killed with SIGKILL just after the n-th thing they do to the world.
//!
//! The command is the installed program as it is: it runs under ptrace(2), where each of its system calls that leaves
//! a trace outside the process (a file, a process, a message, a mount) and succeeds is a step. After the chosen one it is
//! killed, before it executes another instruction. What it has started is not traced and lives on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::command::LIMIT;

/// How a command that was to be killed has ended.
#[derive(Debug)]
pub struct Interrupted {
    /// The steps that it has made, the last of which was its last act if it was killed.
    pub steps: Vec<String>,
    /// Its exit code if it came to its end before the step.
    pub code: Option<i32>,
}

/// Runs `command` and kills it just after its step number `after`, counted from 1.
///
/// # Panics
/// It cannot be started or traced, or runs for longer than [`LIMIT`].
#[must_use]
pub fn run_until_step(command: &mut Command, after: usize) -> Interrupted {
    let (sender, started) = channel();
    // A thread of its own: whoever starts the command is its tracer, and waits for nothing else.
    std::thread::scope(|scope| {
        let traced = scope.spawn(move || Tracer::start(command, &sender).run(after));
        let start = Instant::now();
        while !traced.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
            if start.elapsed() > LIMIT {
                let process: Pid = started.recv().expect("the tracer");
                kill(process, Signal::SIGKILL).expect("kill");
                panic!("the command still runs after {LIMIT:?}");
            }
        }
        traced.join().expect("the tracer")
    })
}

struct Tracer {
    process: Pid,
    /// What each thread has begun that is a step if it succeeds.
    begun: BTreeMap<Pid, String>,
    steps: Vec<String>,
}

impl Tracer {
    fn start(command: &mut Command, started: &Sender<Pid>) -> Self {
        // SAFETY: ptrace(2) is async-signal-safe, and touches no memory of the process.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(|| ptrace::traceme().map_err(Into::into));
        }
        // It is waited for with its threads.
        #[allow(clippy::zombie_processes)]
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let process = Pid::from_raw(child.id().try_into().expect("a pid"));
        // It stops as soon as it has become its program.
        let status = waitpid(process, None).expect("wait for the command");
        assert!(
            matches!(status, WaitStatus::Stopped(_, Signal::SIGTRAP)),
            "{status:?}"
        );
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD
            | ptrace::Options::PTRACE_O_TRACECLONE
            | ptrace::Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(process, options).expect("ptrace options");
        ptrace::syscall(process, None).expect("ptrace");
        started.send(process).expect("the tracer's maker");
        Self {
            process,
            begun: BTreeMap::new(),
            steps: Vec::new(),
        }
    }

    fn run(mut self, after: usize) -> Interrupted {
        // Threads of the command, and no children of other threads of this process.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let (thread, signal) = match waitpid(None, Some(flags)).expect("wait for the command") {
                WaitStatus::Exited(pid, code) if pid == self.process => {
                    return self.ended(Some(code));
                }
                WaitStatus::Signaled(pid, ..) if pid == self.process => return self.ended(None),
                WaitStatus::PtraceSyscall(thread) => {
                    self.at_system_call(thread);
                    if self.steps.len() >= after {
                        // It may have ended by itself.
                        let _ = kill(self.process, Signal::SIGKILL);
                        continue;
                    }
                    (thread, None)
                }
                // A new thread begins with a stop.
                WaitStatus::Stopped(thread, Signal::SIGSTOP) => (thread, None),
                WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
                WaitStatus::PtraceEvent(thread, ..) => (thread, None),
                _ => continue,
            };
            match ptrace::syscall(thread, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => panic!("ptrace: {errno}"),
            }
        }
    }

    fn ended(self, code: Option<i32>) -> Interrupted {
        Interrupted {
            steps: self.steps,
            code,
        }
    }

    fn at_system_call(&mut self, thread: Pid) {
        // Another thread may have ended the process.
        let Ok(registers) = ptrace::getregs(thread) else {
            return;
        };
        let result = registers.rax.cast_signed();
        if result == -i64::from(libc::ENOSYS) {
            // On the way in.
            let call = SystemCall {
                process: self.process,
                number: registers.orig_rax.cast_signed(),
                arguments: [registers.rdi, registers.rsi, registers.rdx, registers.r10],
            };
            if let Some(step) = call.step() {
                self.begun.insert(thread, step);
            }
        } else if let Some(step) = self.begun.remove(&thread)
            && result >= 0
            && !self.is_repeated(&step)
        {
            self.steps.push(step);
        }
    }

    /// Whether it is one more try of what was tried before: to reach an agent that does not listen yet.
    fn is_repeated(&self, step: &str) -> bool {
        let is_try = step.starts_with("connect") || step == "write socket";
        is_try && self.steps.iter().rev().take(2).any(|last| last == step)
    }
}

struct SystemCall {
    process: Pid,
    number: i64,
    arguments: [u64; 4],
}

/// The request numbers of tun(4) are from here on: those of terminals, which have the same type, are below.
const FIRST_TUN_REQUEST: u64 = 200;

impl SystemCall {
    /// What it does to the world, if anything.
    fn step(&self) -> Option<String> {
        let [first, second, third, _] = self.arguments;
        let path = |address| self.text(address);
        let step = match self.number {
            libc::SYS_mkdir => format!("mkdir {}", path(first)),
            libc::SYS_mkdirat => format!("mkdir {}", path(second)),
            libc::SYS_rmdir => format!("rmdir {}", path(first)),
            libc::SYS_unlink => format!("unlink {}", path(first)),
            libc::SYS_unlinkat => format!("unlink {}", path(second)),
            libc::SYS_rename => format!("rename to {}", path(second)),
            libc::SYS_renameat | libc::SYS_renameat2 => "rename".into(),
            libc::SYS_symlink | libc::SYS_symlinkat | libc::SYS_link | libc::SYS_linkat => {
                "link".into()
            }
            libc::SYS_mknod | libc::SYS_mknodat => "mknod".into(),
            libc::SYS_chmod | libc::SYS_fchmod | libc::SYS_fchmodat => "chmod".into(),
            libc::SYS_chown | libc::SYS_fchown | libc::SYS_fchownat => "chown".into(),
            libc::SYS_open if creates(second) => format!("create {}", path(first)),
            libc::SYS_openat if creates(third) => format!("create {}", path(second)),
            // Standard streams are the caller's.
            libc::SYS_write | libc::SYS_writev | libc::SYS_pwrite64 if first > 2 => {
                format!("write {}", self.descriptor(first))
            }
            libc::SYS_sendto if self.only_asks() => return None,
            libc::SYS_sendto => "sendto".into(),
            libc::SYS_sendmsg | libc::SYS_sendmmsg => "sendmsg".into(),
            libc::SYS_connect => "connect".into(),
            libc::SYS_bind => "bind".into(),
            libc::SYS_ioctl
                if (second >> 8) & 0xff == u64::from(b'T')
                    && second & 0xff >= FIRST_TUN_REQUEST =>
            {
                format!("ioctl {second:#x} {}", self.descriptor(first))
            }
            libc::SYS_mount => "mount".into(),
            libc::SYS_umount2 => "umount".into(),
            libc::SYS_open_tree => "open_tree".into(),
            libc::SYS_move_mount => "move_mount".into(),
            libc::SYS_mount_setattr => "mount_setattr".into(),
            libc::SYS_setns => "setns".into(),
            libc::SYS_unshare => "unshare".into(),
            libc::SYS_fork | libc::SYS_vfork => "fork".into(),
            libc::SYS_clone if is_process(first) => "fork".into(),
            libc::SYS_clone3 if is_process(self.number_at(first)) => "fork".into(),
            libc::SYS_kill | libc::SYS_tkill | libc::SYS_tgkill | libc::SYS_pidfd_send_signal => {
                "kill".into()
            }
            libc::SYS_flock => "flock".into(),
            _ => return None,
        };
        Some(step)
    }

    /// Whether it sends a netlink request that changes nothing: `RTM_GET…` (linux/rtnetlink.h).
    fn only_asks(&self) -> bool {
        let header = self.number_at(self.arguments[1]);
        let (length, kind) = (header & 0xffff_ffff, (header >> 32) & 0xffff);
        length <= self.arguments[2] && (16..128).contains(&kind) && kind % 4 == 2
    }

    /// Eight bytes of the process's memory, 0 where there are none.
    fn number_at(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes);
        u64::from_ne_bytes(bytes)
    }

    fn text(&self, address: u64) -> String {
        let mut bytes = [0; 256];
        self.read(address, &mut bytes);
        let end = bytes.iter().position(|byte| *byte == 0);
        String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
    }

    /// Reads as far as there is memory.
    fn read(&self, address: u64, bytes: &mut [u8]) {
        if let Ok(memory) = File::open(format!("/proc/{}/mem", self.process)) {
            let _ = memory.read_at(bytes, address);
        }
    }

    /// What a descriptor stands for, without the number of the one socket or pipe.
    fn descriptor(&self, number: u64) -> String {
        let link = fs::read_link(format!("/proc/{}/fd/{number}", self.process));
        let link = link.unwrap_or_default().display().to_string();
        link.split(':').next().unwrap_or_default().to_owned()
    }
}

fn creates(flags: u64) -> bool {
    flags & u64::from(libc::O_CREAT.unsigned_abs()) != 0
}

/// Whether the flags of clone(2) make a process and no thread.
fn is_process(flags: u64) -> bool {
    flags & u64::from(libc::CLONE_THREAD.unsigned_abs()) == 0
}
