//! Serves FUSE requests from the queues, each with any number of threads.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, OutHeader};
use fuse_backend_rs::api::server::{MAX_BUFFER_SIZE, Server};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::backend::SharedDirectory;
use crate::devices::virtio::activity::Activity;
use crate::devices::virtio::device::Interrupt;
use crate::devices::virtio::ring::{Chain, Ring, RingError};
use crate::memory::{GuestMemory, SharedMemory};

/// The most that a request or a reply may be long, in bytes: a megabyte of data, and headers.
const MAX_MESSAGE: usize = MAX_BUFFER_SIZE as usize + 64 * 1024;

/// Requests after which more files may be open than before.
const OPENING: [u32; 9] = [
    Opcode::Lookup as u32,
    Opcode::Open as u32,
    Opcode::Opendir as u32,
    Opcode::Create as u32,
    Opcode::Mkdir as u32,
    Opcode::Mknod as u32,
    Opcode::Symlink as u32,
    Opcode::Link as u32,
    Opcode::Readdirplus as u32,
];

/// What epoll gives back when the thread shall end; a smaller value is a queue's place in the pool.
const STOP: u64 = u64::MAX;

/// A queue that several threads take requests from.
pub(super) struct RequestQueue {
    index: u16,
    /// None once the driver broke it.
    ring: Mutex<Option<Ring>>,
    kick: EventFd,
}

impl RequestQueue {
    /// The device's queue `index`.
    pub(super) fn new(index: u16, ring: Ring, kick: EventFd) -> Self {
        Self {
            index,
            ring: Mutex::new(Some(ring)),
            kick,
        }
    }

    /// Does something with the ring; a ring that turns out to be broken is not touched again.
    fn with_ring<T>(&self, work: impl FnOnce(&mut Ring) -> Result<T, RingError>) -> Option<T> {
        // A thread that panicked did so while it handled a request, not in here.
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        match work(ring.as_mut()?) {
            Ok(result) => Some(result),
            Err(error) => {
                tracing::debug!(%error, queue = self.index, "the driver broke a file system queue");
                *ring = None;
                None
            }
        }
    }

    /// Takes a request. If there are more, another thread is woken for them.
    fn take<'m>(&self, memory: &'m GuestMemory) -> Option<Chain<'m>> {
        self.with_ring(|ring| {
            let mut chain = ring.pop(memory)?;
            let mut more = ring.enable_kicks(memory)?;
            if chain.is_none() && more {
                chain = ring.pop(memory)?;
                more = ring.enable_kicks(memory)?;
            }
            if more {
                // Only a counter that is full refuses, after 2^64 notifications.
                let _ = self.kick.write(1);
            }
            Ok(chain)
        })
        .flatten()
    }

    /// Gives a request back with its reply.
    fn complete(&self, memory: &GuestMemory, head: u16, written: u32, interrupt: &dyn Interrupt) {
        let wanted = self.with_ring(|ring| {
            ring.push_used(memory, head, written)?;
            ring.publish(memory)?;
            ring.needs_interrupt(memory)
        });
        if wanted == Some(true) {
            interrupt.signal_queue(self.index);
        }
    }
}

/// What all threads of the device share.
pub(super) struct Pool {
    pub(super) memory: SharedMemory,
    pub(super) queues: Vec<RequestQueue>,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) directory: Arc<SharedDirectory>,
    pub(super) server: Arc<Server<Arc<SharedDirectory>>>,
    pub(super) activity: Arc<Activity>,
    /// Set before the threads are told to stop, so that a busy queue does not keep them.
    pub(super) stopping: AtomicBool,
}

impl Pool {
    /// Serves requests until `stop` is signalled.
    ///
    /// # Errors
    /// The host refuses to wait for events.
    pub(super) fn serve(&self, stop: &EventFd) -> io::Result<()> {
        let epoll = Epoll::new()?;
        let stopped = EpollEvent::new(EventSet::IN, STOP);
        epoll.ctl(ControlOperation::Add, stop.as_raw_fd(), stopped)?;
        for (place, queue) in (0..).zip(&self.queues) {
            // One thread wakes for each notification, and need not read it away.
            let wake = EventSet::IN | EventSet::EXCLUSIVE | EventSet::EDGE_TRIGGERED;
            let kicked = EpollEvent::new(wake, place);
            epoll.ctl(ControlOperation::Add, queue.kick.as_raw_fd(), kicked)?;
        }
        loop {
            let mut events = [EpollEvent::default(); 4];
            let count = match epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                other => other?,
            };
            for event in &events[..count] {
                let place = usize::try_from(event.data()).unwrap_or(usize::MAX);
                match self.queues.get(place) {
                    Some(queue) => self.drain(queue),
                    None => return Ok(()),
                }
            }
        }
    }

    /// Handles requests until there are none.
    fn drain(&self, queue: &RequestQueue) {
        let memory = self.memory.memory();
        while !self.stopping.load(Ordering::Relaxed)
            && let Some(chain) = queue.take(&memory)
        {
            let head = chain.head_index();
            let written = self.handle(&memory, chain);
            queue.complete(&memory, head, written, &*self.interrupt);
        }
    }

    /// Handles one request; gives the length of the reply, which is 0 where there is none.
    fn handle(&self, memory: &GuestMemory, chain: Chain<'_>) -> u32 {
        let Ok(reader) = Reader::from_descriptor_chain(memory, chain.clone()) else {
            return 0;
        };
        let Ok(writer) = VirtioFsWriter::new(memory, chain) else {
            return 0;
        };
        let Ok(header) = reader.clone().read_obj::<InHeader>() else {
            return 0;
        };
        let refuse = |writer, errno| {
            self.activity.fail();
            refuse(writer, &header, errno)
        };
        if reader.available_bytes() > MAX_MESSAGE || writer.available_bytes() > MAX_MESSAGE {
            return refuse(writer, libc::E2BIG);
        }
        if OPENING.contains(&header.opcode) && !self.directory.may_open() {
            return refuse(writer, libc::ENFILE);
        }
        self.activity
            .from_guest
            .add(reader.available_bytes() as u64);
        let reply = Writer::VirtioFs(writer.clone());
        match self.server.handle_message(reader, reply, None, None) {
            Ok(length) => {
                if length > 0 {
                    self.activity.to_guest.add(length as u64);
                }
                // Bounded by MAX_MESSAGE.
                u32::try_from(length).unwrap_or(0)
            }
            Err(error) => {
                tracing::debug!(%error, opcode = header.opcode, "refused a file system request");
                refuse(writer, libc::EINVAL)
            }
        }
    }
}

/// Replies with an error, where the request has a reply and room for it.
fn refuse(mut writer: VirtioFsWriter<'_>, header: &InHeader, errno: i32) -> u32 {
    let unanswered = [Opcode::Forget as u32, Opcode::BatchForget as u32];
    if unanswered.contains(&header.opcode) {
        return 0;
    }
    const LENGTH: u32 = 16;
    let reply = OutHeader {
        len: LENGTH,
        error: -errno,
        unique: header.unique,
    };
    writer.write_obj(reply).map_or(0, |()| LENGTH)
}
