//! The host's side of one pair of queues, as the VMM's own threads read and write it. vhost-net takes the queues at
//! activation instead, and needs of this only the offloads and what is attached.

use std::io;
use std::os::fd::AsRawFd;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
};
use vm_memory::VolatileSlice;

/// Moves frames, each with its `virtio_net_hdr` in front. Nothing blocks: `WouldBlock` means to wait until the
/// descriptor is ready.
pub(super) trait Backend: AsRawFd + Send + Sync + 'static {
    /// Receives one frame into `pieces` and, what does not fit there, into `spill`. Gives its length, which tells
    /// whether it has spilled.
    fn receive(&self, pieces: &[VolatileSlice<'_>], spill: &mut [u8]) -> io::Result<usize>;

    /// Sends one frame.
    fn send(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Sets what received frames may leave for the guest to do, for all pairs of the NIC.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Lets the host steer frames to this pair, or stops that. Only for the second pair and those after it.
    fn set_attached(&self, attached: bool) -> io::Result<()>;
}

/// What received frames may leave for the guest to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offloads {
    /// Checksums may be missing. The others need this one.
    pub(super) checksum: bool,
    /// TCP over IPv4 may come in segments larger than the MTU.
    pub(super) tso4: bool,
    /// TCP over IPv6 may.
    pub(super) tso6: bool,
    /// So may TCP with ECN.
    pub(super) ecn: bool,
    /// UDP over IPv4 and IPv6 may.
    pub(super) uso: bool,
}

/// The bits of [`Offloads::from_bits`].
pub(super) const OFFLOAD_BITS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;

impl Offloads {
    /// From feature bits, or the bits of VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, which are the same (§5.1.6.5.6). What
    /// lacks the bits it depends on (§5.1.3.1) counts as absent, and so does USO for one version of IP only, which
    /// Linux cannot do.
    pub(super) fn from_bits(bits: u64) -> Self {
        let has = |bit: u32| bits & 1 << bit != 0;
        let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
        let tso4 = checksum && has(VIRTIO_NET_F_GUEST_TSO4);
        let tso6 = checksum && has(VIRTIO_NET_F_GUEST_TSO6);
        Self {
            checksum,
            tso4,
            tso6,
            ecn: (tso4 || tso6) && has(VIRTIO_NET_F_GUEST_ECN),
            uso: checksum && has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
        }
    }

    /// Whether received frames can be larger than the MTU.
    pub(super) fn segmentation(self) -> bool {
        self.tso4 || self.tso6 || self.uso
    }
}
