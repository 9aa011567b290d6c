//! What passed through a NIC, seen from the guest.

use std::sync::atomic::{AtomicU64, Ordering};

use hull_vmm_protocol::control::{NicTraffic, TrafficCounters};

/// Counters of one direction. They only grow, also across resets of the device.
#[derive(Debug, Default)]
pub struct Direction {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    /// Frames that passed.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Their bytes, from the Ethernet header on.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Frames that were lost: malformed, too large for the other side, or refused by it.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn told(&self) -> TrafficCounters {
        TrafficCounters {
            packets: self.frames(),
            bytes: self.bytes(),
            dropped: self.dropped(),
        }
    }

    pub(super) fn add(&self, tally: Tally) {
        self.frames.fetch_add(tally.frames, Ordering::Relaxed);
        self.bytes.fetch_add(tally.bytes, Ordering::Relaxed);
        self.dropped.fetch_add(tally.dropped, Ordering::Relaxed);
    }
}

/// Counters of a NIC, shared by its device and its workers.
#[derive(Debug, Default)]
pub struct Counters {
    /// What the guest received.
    pub received: Direction,
    /// What the guest sent.
    pub sent: Direction,
}

impl Counters {
    /// The counters as callers are told them.
    #[must_use]
    pub fn told(&self) -> NicTraffic {
        NicTraffic {
            received: self.received.told(),
            sent: self.sent.told(),
        }
    }
}

/// What one round of a worker adds to a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
}

impl Tally {
    /// Counts a frame, whose length includes the `virtio_net_hdr`.
    pub(super) fn pass(&mut self, length: usize) {
        self.frames += 1;
        // A usize has no more than 64 bits.
        self.bytes += length.saturating_sub(super::HEADER_SIZE) as u64;
    }

    pub(super) fn drop_frame(&mut self) {
        self.dropped += 1;
    }
}
