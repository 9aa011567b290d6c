//! A tap of the host (`Documentation/networking/tuntap`) as the backend of a pair of queues. The runtime makes it, in
//! the container's network namespace, and passes its descriptor.

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vm_memory::VolatileSlice;

use super::backend::{Backend, Offloads};
use super::{HEADER_SIZE, MAX_FRAME, sys};

/// How much may be on its way from the guest into the host's network. The kernel's default has no bound, so that a
/// guest could fill a slow uplink's queues with host memory; beyond this one the guest's queue waits.
const SEND_BUFFER: c_int = 8 << 20;
/// More frames than the tap's queue holds (its `txqueuelen` is 1000).
const MAX_QUEUED: usize = 4096;

/// Why a descriptor cannot be a NIC's tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is not a tap, or the interface is gone.
    #[error("the descriptor is not that of a tap")]
    NotATap(#[source] io::Error),
    /// It was made with other flags than IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
    #[error("the tap has the flags {flags:#x}; it needs IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Flags {
        /// What it was made with.
        flags: c_uint,
    },
    /// One of several was made without IFF_MULTI_QUEUE, or for another interface.
    #[error("several descriptors must be queues of one tap with IFF_MULTI_QUEUE")]
    NotOneInterface,
    /// The host refused to set it up.
    #[error("{operation} on the tap")]
    SetUp {
        /// What was asked of the host.
        operation: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

/// One queue of a tap.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
    attached: AtomicBool,
}

impl Tap {
    /// Takes over the queues of one tap: nothing blocks, frames have the header of virtio, and none leaves anything
    /// for the guest to do yet.
    pub(super) fn adopt(fds: Vec<OwnedFd>) -> Result<Vec<Self>, TapError> {
        let several = fds.len() > 1;
        let mut interfaces = Vec::with_capacity(fds.len());
        for fd in &fds {
            let interface = sys::interface(fd.as_fd()).map_err(TapError::NotATap)?;
            let flags = c_uint::from(interface.flags.cast_unsigned());
            let has = |flag: c_int| flags & flag.cast_unsigned() != 0;
            if !(has(libc::IFF_TAP) && has(libc::IFF_NO_PI) && has(libc::IFF_VNET_HDR)) {
                return Err(TapError::Flags { flags });
            }
            if several && !has(libc::IFF_MULTI_QUEUE) {
                return Err(TapError::NotOneInterface);
            }
            interfaces.push(interface);
        }
        if interfaces
            .windows(2)
            .any(|pair| pair[0].name != pair[1].name)
        {
            return Err(TapError::NotOneInterface);
        }
        fds.into_iter().map(Self::set_up).collect()
    }

    fn set_up(fd: OwnedFd) -> Result<Self, TapError> {
        let step = |operation| move |source| TapError::SetUp { operation, source };
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(|error| step("F_GETFL")(error.into()))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&fd, FcntlArg::F_SETFL(flags)).map_err(|error| step("F_SETFL")(error.into()))?;
        c_int::try_from(HEADER_SIZE)
            .map_err(io::Error::other)
            .and_then(|size| sys::set_header_size(fd.as_fd(), size))
            .map_err(step("TUNSETVNETHDRSZ"))?;
        sys::set_send_buffer(fd.as_fd(), SEND_BUFFER).map_err(step("TUNSETSNDBUF"))?;
        sys::set_offload(fd.as_fd(), 0).map_err(step("TUNSETOFFLOAD"))?;
        Ok(Self {
            fd,
            attached: AtomicBool::new(true),
        })
    }

    /// Whether the host's taps know UDP segmentation (Linux 6.2 and later). Found by asking for it; the tap has no
    /// offloads afterwards.
    pub(super) fn knows_udp_segmentation(&self) -> Result<bool, TapError> {
        let asked = Offloads {
            checksum: true,
            uso: true,
            ..Offloads::default()
        };
        let known = self.set_offloads(asked).is_ok();
        self.set_offloads(Offloads::default())
            .map_err(|source| TapError::SetUp {
                operation: "TUNSETOFFLOAD",
                source,
            })?;
        Ok(known)
    }

    /// Lifts the bound on what is on its way into the host's network. With the bound, vhost-net hands over frame by
    /// frame; without, in batches.
    pub(super) fn lift_send_bound(&self) -> Result<(), TapError> {
        sys::set_send_buffer(self.fd.as_fd(), c_int::MAX).map_err(|source| TapError::SetUp {
            operation: "TUNSETSNDBUF",
            source,
        })
    }

    /// Throws away the frames that wait to be received.
    pub(super) fn discard_queued(&self) {
        let mut frame = vec![0; MAX_FRAME];
        for _ in 0..MAX_QUEUED {
            if self.receive(&[], &mut frame).is_err() {
                break;
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Backend for Tap {
    fn receive(&self, pieces: &[VolatileSlice<'_>], spill: &mut [u8]) -> io::Result<usize> {
        sys::read_frame(self.fd.as_fd(), pieces, spill)
    }

    fn send(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<()> {
        // A tap takes a frame whole or not at all.
        sys::write_frame(self.fd.as_fd(), pieces).map(|_| ())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let flags = [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
            (offloads.ecn, libc::TUN_F_TSO_ECN),
            (offloads.uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
        ];
        let flags = flags.into_iter().filter(|(wanted, _)| *wanted);
        sys::set_offload(self.fd.as_fd(), flags.fold(0, |all, (_, flag)| all | flag))
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        // The kernel refuses what is so already.
        if self.attached.load(Ordering::SeqCst) != attached {
            sys::set_queue(self.fd.as_fd(), attached)?;
            self.attached.store(attached, Ordering::SeqCst);
        }
        Ok(())
    }
}
