//! The main thread once the machine runs: it takes control calls ([`server`]), and waits for the end of the machine
//! or a signal to end it.
//!
//! Callers are the owner of the socket; what they send is checked all the same, and a caller that does not read its
//! answers is dropped.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use hull_vmm_protocol::control::{Failure, FailureKind, Request, Response};
use hull_vmm_protocol::outcome::Cause;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::devices::pci::root::Address;
use crate::machine::Machine;
use crate::machine::console_log::TAIL;
use crate::machine::devices::DeviceError;
use crate::machine::end::End;

pub mod server;

use server::{Call, Server};

/// The signals that end the machine.
const END_SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Takes the signals that end the machine for this thread and all that it starts; gives where they are read.
///
/// # Errors
/// The host refused.
pub fn take_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in END_SIGNALS {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(
        &set,
        SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
    )?)
}

/// Serves until the machine has ended; says how.
///
/// # Errors
/// The host refused to wait for events.
pub fn serve(machine: &mut Machine, server: &mut Server, signals: &SignalFd) -> io::Result<End> {
    const SIGNALS: u64 = 0;
    const END: u64 = 1;
    const CALLS: u64 = 2;
    let epoll = Epoll::new()?;
    for (fd, token) in [
        (signals.as_raw_fd(), SIGNALS),
        (machine.end.as_raw_fd(), END),
        (server.as_raw_fd(), CALLS),
    ] {
        epoll.ctl(
            ControlOperation::Add,
            fd,
            EpollEvent::new(EventSet::IN, token),
        )?;
    }
    let mut events = [EpollEvent::default(); 3];
    loop {
        let wait = match machine.end.at(Instant::now()) {
            Ok(end) => return Ok(end),
            Err(wait) => wait,
        };
        let timeout = wait.map_or(-1, |wait| {
            i32::try_from(wait.as_millis() + 1).unwrap_or(i32::MAX)
        });
        let count = match epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for event in &events[..count] {
            match event.data() {
                SIGNALS => {
                    if let Some(signal) = signals.read_signal()? {
                        let message = format!("signal {} ended the machine", signal.ssi_signo);
                        machine.end.tell(End::new(Cause::Stopped, &message));
                    }
                }
                CALLS => server.serve(&mut |call| answer(machine, call))?,
                _ => {}
            }
        }
    }
}

/// Does what a call asks for.
fn answer(machine: &mut Machine, call: Call) -> Response {
    let Call { request, fds } = call;
    if !fds.is_empty() && !matches!(request, Request::AttachNet(_) | Request::AttachBlk(_)) {
        return Response::Failed(Failure {
            kind: FailureKind::Invalid,
            message: format!("{} descriptors came with a call that takes none", fds.len()),
        });
    }
    let result = match request {
        Request::AttachNet(config) => machine.devices.attach_net(&config, fds).map(attached),
        Request::AttachFs(config) => machine.devices.attach_fs(&config).map(attached),
        Request::AttachBlk(config) => machine.devices.attach_blk(&config, fds).map(attached),
        Request::Detach { id } => machine.devices.detach(&id).map(|()| Response::Done),
        Request::ResizeMemory { memory_mib } => {
            machine.resize_memory(memory_mib).map(|()| Response::Done)
        }
        Request::NetCounters => Ok(Response::NetCounters {
            nics: machine.devices.net_counters(),
        }),
        Request::DeviceCounters => Ok(Response::DeviceCounters {
            devices: machine.devices.device_counters(),
        }),
        Request::VcpuCounters => Ok(match machine.vcpu_counters() {
            Ok(counters) => Response::VcpuCounters { counters },
            Err(error) => Response::Failed(Failure {
                kind: FailureKind::Host,
                message: format!("read what KVM counts: {error}"),
            }),
        }),
        Request::Status => Ok(Response::Status(machine.status())),
        Request::ConsoleTail { max_bytes } => {
            let max = usize::try_from(max_bytes).map_or(TAIL, |max| max.min(TAIL));
            Ok(Response::ConsoleTail {
                text: machine.console.tail(max),
            })
        }
        Request::Stop => {
            machine
                .end
                .tell(End::new(Cause::Stopped, "a control call ended the machine"));
            Ok(Response::Done)
        }
    };
    result.unwrap_or_else(|error| Response::Failed(failure(&error)))
}

fn attached(address: Address) -> Response {
    Response::Attached {
        pci_address: address.to_string(),
    }
}

/// The failure that a caller sees: the whole chain of causes in one line.
fn failure(error: &DeviceError) -> Failure {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Failure {
        kind: error.kind(),
        message,
    }
}
