//! The block device (virtio 1.2 §5.2): a disk of the guest's that is a block device or a file of the host's.
//!
//! Roles: `device.rs` is what the driver negotiates. Each queue has a worker thread, which does one request after the
//! other (`worker.rs`): it waits for the host's disk, and nobody else does. `backend.rs` is the disk, `sys.rs` its
//! vectored input and output on guest memory.
//!
//! What crosses the boundary: the guest's requests, all of them hostile, and the disk's contents, which are the guest's
//! and never looked at. A request is bounded in length (`MAX_DATA`), so that a worker can be stopped soon.

mod backend;
pub mod device;
mod sys;
mod worker;

pub use backend::{Disk, DiskError};

/// What a sector is in requests and in the capacity, in bytes, whatever the disk's own block is (§5.2.4).
const SECTOR: u64 = 512;

/// The most bytes of one piece of a request's data (`size_max`).
const MAX_PIECE: u32 = 128 * 1024;
/// The most pieces of a request's data (`seg_max`): a queue's descriptors, but for the header and the status.
const MAX_PIECES: u16 = QUEUE_SIZE - 2;
/// The most bytes that a request may move.
const MAX_DATA: u64 = MAX_PIECE as u64 * MAX_PIECES as u64;

/// Descriptors of a queue.
const QUEUE_SIZE: u16 = 256;

/// The most sectors that one range of a request to discard or zero may have: a gigabyte.
const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// The most such ranges in a request.
const MAX_RANGES: u32 = 32;
