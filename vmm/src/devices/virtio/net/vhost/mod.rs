//! vhost-net: a thread of the host's kernel moves the packets of a pair of queues between guest memory and the tap
//! (`drivers/vhost/net.c` of Linux). No thread of the VMM has a part in it: kicks are the eventfds that KVM signals
//! when the driver writes its doorbell, and interrupts go to the eventfds that KVM injects them from.
//!
//! The VMM sets a pair up when the driver is ready, and stops it at a reset. What the driver says of its rings is
//! checked here, for the kernel takes the rings' addresses as those of this process; the addresses in descriptors it
//! checks against the table of guest memory. A ring that a driver breaks stops, and does no other harm.
//!
//! The descriptors come with the device: the VMM opens nothing. Two things that the VMM's own workers do are not done:
//! nobody counts what passes, for the tap does; and a tap that the host removes is not noticed, so the guest's link
//! stays up and its frames go nowhere. The table of guest memory is that of the moment at which the driver was ready.

mod sys;

use std::ffi::c_uint;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, GuestAddress, GuestMemory as _, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::tap::Tap;
use crate::devices::virtio::device::{ActiveQueue, Interrupt};
use crate::memory::GuestMemory;

use sys::{MemoryRegion, VringAddress};

/// The features that change what the kernel does with queues. All others are the tap's, or the control queue's.
pub(super) const QUEUE_FEATURES: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_F_VERSION_1;

/// A descriptor in the table, two rings' index and flags (virtio 1.2 §2.7).
const DESCRIPTOR_SIZE: usize = 16;
const RING_HEADER: usize = 4;
const AVAILABLE_ENTRY: usize = 2;
const USED_ENTRY: usize = 8;
/// `used_event` or `avail_event` after a ring's entries.
const EVENT_SIZE: usize = 2;

/// Why a pair of queues is not served by the kernel.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// The descriptor is not that of vhost-net, or the kernel refused.
    #[error("{operation} of vhost-net")]
    Ioctl {
        /// What was asked of the host.
        operation: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// It is too old: it has no virtio 1.
    #[error("vhost-net has the features {0:#x}, without VIRTIO_F_VERSION_1")]
    Features(u64),
    /// The driver has put a ring where there is no memory.
    #[error("ring {0} is not in guest memory")]
    Ring(u16),
}

fn refused(operation: &'static str) -> impl Fn(io::Error) -> VhostError {
    move |source| VhostError::Ioctl { operation, source }
}

/// A descriptor of vhost-net, which serves one pair of queues.
#[derive(Debug)]
struct Vhost {
    fd: OwnedFd,
}

/// One of the two queues of a pair, by its number in vhost-net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ring {
    Receive = 0,
    Transmit = 1,
}

impl Ring {
    const BOTH: [Self; 2] = [Self::Receive, Self::Transmit];

    fn number(self) -> c_uint {
        self as c_uint
    }

    /// The queue's index in the device.
    fn queue(self, pair: u16) -> u16 {
        2 * pair + self as u16
    }
}

impl Vhost {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Starts the work on a pair.
    fn start(
        &self,
        memory: &GuestMemory,
        features: u64,
        pair: u16,
        queues: &[ActiveQueue; 2],
        interrupt: &dyn Interrupt,
        tap: &Tap,
    ) -> Result<(), VhostError> {
        sys::set_features(self.fd(), features & QUEUE_FEATURES)
            .map_err(refused("VHOST_SET_FEATURES"))?;
        sys::set_memory_table(self.fd(), &regions(memory))
            .map_err(refused("VHOST_SET_MEM_TABLE"))?;
        for (ring, active) in Ring::BOTH.into_iter().zip(queues) {
            self.set_up(ring, memory, ring.queue(pair), active)?;
            self.set_call(ring, interrupt.queue_eventfd(ring.queue(pair)))?;
        }
        for (ring, active) in Ring::BOTH.into_iter().zip(queues) {
            sys::set_backend(self.fd(), ring.number(), Some(tap.as_fd()))
                .map_err(refused("VHOST_NET_SET_BACKEND"))?;
            // The driver may have kicked before. An eventfd that is full is signalled as it is.
            let _ = active.kick.write(1);
        }
        Ok(())
    }

    fn set_up(
        &self,
        ring: Ring,
        memory: &GuestMemory,
        queue_index: u16,
        active: &ActiveQueue,
    ) -> Result<(), VhostError> {
        let queue = &active.queue;
        let address = ring_address(ring, memory, queue).ok_or(VhostError::Ring(queue_index))?;
        let number = ring.number();
        sys::set_vring_size(self.fd(), number, queue.size())
            .map_err(refused("VHOST_SET_VRING_NUM"))?;
        sys::set_vring_base(self.fd(), number, queue.next_avail())
            .map_err(refused("VHOST_SET_VRING_BASE"))?;
        sys::set_vring_address(self.fd(), &address).map_err(refused("VHOST_SET_VRING_ADDR"))?;
        sys::set_vring_kick(self.fd(), number, &active.kick)
            .map_err(refused("VHOST_SET_VRING_KICK"))
    }

    fn set_call(&self, ring: Ring, event: Option<EventFd>) -> Result<(), VhostError> {
        sys::set_vring_call(self.fd(), ring.number(), event.as_ref())
            .map_err(refused("VHOST_SET_VRING_CALL"))
    }

    /// Stops the work: when this returns, the kernel touches no guest memory for the pair.
    fn stop(&self) {
        for ring in Ring::BOTH {
            if let Err(error) = sys::set_backend(self.fd(), ring.number(), None) {
                // It has no reason to refuse this to the process that owns it.
                tracing::error!(%error, ?ring, "stop vhost-net");
            }
        }
    }
}

/// The pairs of a NIC that the kernel serves.
pub(super) struct VhostPairs {
    pairs: Vec<Vhost>,
    /// The queue features that the kernel knows.
    features: u64,
    /// Pairs at work, and how they interrupt.
    running: Option<(u16, Arc<dyn Interrupt>)>,
}

impl VhostPairs {
    /// Takes over descriptors of vhost-net, one for each pair. Each gets a thread in the kernel.
    pub(super) fn adopt(fds: Vec<OwnedFd>) -> Result<Self, VhostError> {
        let mut features = QUEUE_FEATURES;
        let mut pairs = Vec::with_capacity(fds.len());
        for fd in fds {
            let known = sys::features(fd.as_fd()).map_err(refused("VHOST_GET_FEATURES"))?;
            if known & 1 << VIRTIO_F_VERSION_1 == 0 {
                return Err(VhostError::Features(known));
            }
            features &= known;
            sys::set_owner(fd.as_fd()).map_err(refused("VHOST_SET_OWNER"))?;
            pairs.push(Vhost { fd });
        }
        Ok(Self {
            pairs,
            features,
            running: None,
        })
    }

    /// Of `offered`, what a driver may be offered.
    pub(super) fn restrict(&self, offered: u64) -> u64 {
        offered & (self.features | !QUEUE_FEATURES)
    }

    /// Starts the work on the first pairs, as many as there are in `queues`. Nothing runs after an error.
    pub(super) fn start(
        &mut self,
        memory: &GuestMemory,
        features: u64,
        queues: &[[ActiveQueue; 2]],
        interrupt: Arc<dyn Interrupt>,
        taps: &[Arc<Tap>],
    ) -> Result<(), VhostError> {
        let pairs = (0..).zip(&self.pairs).zip(queues).zip(taps);
        for (((pair, vhost), queues), tap) in pairs {
            let started = vhost.start(memory, features, pair, queues, interrupt.as_ref(), tap);
            if let Err(error) = started {
                self.pairs.iter().for_each(Vhost::stop);
                return Err(error);
            }
        }
        let count = u16::try_from(queues.len()).unwrap_or(u16::MAX);
        self.running = Some((count, interrupt));
        Ok(())
    }

    /// The driver has given queues other vectors.
    pub(super) fn follow_vectors(&self) {
        let Some((count, interrupt)) = &self.running else {
            return;
        };
        for (pair, vhost) in (0..*count).zip(&self.pairs) {
            for ring in Ring::BOTH {
                let event = interrupt.queue_eventfd(ring.queue(pair));
                if let Err(error) = vhost.set_call(ring, event) {
                    tracing::warn!(%error, pair, ?ring, "a queue's interrupt");
                }
            }
        }
    }

    /// Stops the work on all pairs: when this returns, the kernel touches no guest memory for them.
    pub(super) fn stop(&mut self) {
        if self.running.take().is_some() {
            self.pairs.iter().for_each(Vhost::stop);
        }
    }
}

impl Drop for VhostPairs {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Guest memory as the kernel is told of it.
fn regions(memory: &GuestMemory) -> Vec<MemoryRegion> {
    memory
        .iter()
        .filter_map(|region| {
            let size = usize::try_from(region.len()).ok()?;
            Some(MemoryRegion {
                guest: region.start_addr().raw_value(),
                size: region.len(),
                host: host_address(memory, region.start_addr().raw_value(), size)?,
            })
        })
        .collect()
}

/// Where a queue's parts are in this process; none if one of them is not in guest memory as a whole.
fn ring_address(ring: Ring, memory: &GuestMemory, queue: &Queue) -> Option<VringAddress> {
    let size = usize::from(queue.size());
    let part = |address, bytes| host_address(memory, address, bytes);
    Some(VringAddress {
        index: ring.number(),
        flags: 0,
        descriptors: part(queue.desc_table(), DESCRIPTOR_SIZE * size)?,
        used: part(
            queue.used_ring(),
            RING_HEADER + USED_ENTRY * size + EVENT_SIZE,
        )?,
        available: part(
            queue.avail_ring(),
            RING_HEADER + AVAILABLE_ENTRY * size + EVENT_SIZE,
        )?,
        log: 0,
    })
}

/// Where `bytes` of guest memory from `address` on are in this process; none if not all are in one region.
fn host_address(memory: &GuestMemory, address: u64, bytes: usize) -> Option<u64> {
    let slice = memory.get_slice(GuestAddress(address), bytes).ok()?;
    Some(slice.ptr_guard_mut().as_ptr().expose_provenance() as u64)
}

#[cfg(test)]
mod tests;
