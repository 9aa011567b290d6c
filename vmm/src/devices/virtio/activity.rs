//! What a disk, a file system or a socket device has moved between guest and host.

use std::sync::atomic::{AtomicU64, Ordering};

use hull_vmm_protocol::control::Moved;

/// Counters of a device, shared with its workers. They only grow, also across resets of the device.
#[derive(Debug, Default)]
pub struct Activity {
    /// To the guest: what was read from the disk, replies of the file system, packets of the host.
    pub to_guest: Direction,
    /// From the guest: what was written to the disk, requests to the file system, packets of the guest.
    pub from_guest: Direction,
    failed: AtomicU64,
}

/// Counters of one direction.
#[derive(Debug, Default)]
pub struct Direction {
    operations: AtomicU64,
    bytes: AtomicU64,
}

impl Direction {
    /// Counts an operation that moved so many bytes.
    pub fn add(&self, bytes: u64) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The counters as callers are told them.
    #[must_use]
    pub fn told(&self) -> Moved {
        Moved {
            operations: self.operations.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

impl Activity {
    /// Counts what the device refused, or the host failed at.
    pub fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}
