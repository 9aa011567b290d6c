//! The network device (virtio 1.2 §5.1) on a tap of the container's network namespace.
//!
//! `device.rs` is what the driver negotiates. Each pair of queues has a worker thread of its own (`worker.rs` over
//! `poller.rs`) with a tap descriptor of its own; the first pair's also serves the control queue (`control.rs`). The
//! queue logic is in `receive.rs` and `transmit.rs`, free of threads and events. Frames cross between guest memory and
//! the tap in one vectored system call each, without a copy in between (`tap.rs`, `sys.rs`).
//!
//! Where the host's kernel has vhost-net and is given to the device, it takes over the pairs' queues (`vhost/`), and
//! only the control queue is served here.
//!
//! The host's side is behind the trait in `backend.rs`. What crosses it are frames with the 12-byte `virtio_net_hdr`
//! (§5.1.6) in front, which the kernel writes and checks itself.

mod backend;
mod control;
pub mod counters;
pub mod device;
mod poller;
mod rate;
mod receive;
mod steering;
mod sys;
pub mod tap;
mod transmit;
pub mod vhost;
mod worker;

#[cfg(test)]
mod tests;

use super::buffers::ChainError;
use super::ring::RingError;

/// The size of `struct virtio_net_hdr` with `num_buffers`, which a device without VIRTIO_NET_F_HASH_REPORT always has.
const HEADER_SIZE: usize = 12;
/// Where `num_buffers` is in it, a le16.
const NUM_BUFFERS_OFFSET: usize = 10;
/// An Ethernet header with one VLAN tag.
const LINK_HEADER_SIZE: usize = 14 + 4;
/// The largest packet of IPv4, and of IPv6 without jumbograms. Segmentation offload hands over packets so large.
const MAX_PACKET: usize = 65535;
/// The largest frame in either direction, with its `virtio_net_hdr`.
const MAX_FRAME: usize = HEADER_SIZE + LINK_HEADER_SIZE + MAX_PACKET;

/// How much one direction may do before the other, and the order to stop, have their turn: frames, and bytes of them.
const BUDGET_FRAMES: u32 = 256;
const BUDGET_BYTES: usize = 512 * 1024;
/// After so many frames the driver is interrupted, if it wants that, though there may be more.
const INTERRUPT_BATCH: u32 = 32;

/// Why a queue cannot be used any more.
#[derive(Debug, thiserror::Error)]
enum QueueError {
    /// The driver broke the ring.
    #[error("the ring is not usable")]
    Ring(#[from] RingError),
    /// The driver offered a malformed chain.
    #[error("the driver offered a malformed chain")]
    Chain(#[from] ChainError),
    /// The driver offered a receive buffer without room for the header.
    #[error("a receive buffer of {0} bytes has no room for the header")]
    NoRoom(usize),
}
