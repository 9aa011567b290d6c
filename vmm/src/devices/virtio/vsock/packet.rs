//! Packets in the guest's buffers (virtio 1.2 §5.10.6): a header and its payload, laid out over any number of
//! descriptors (§2.7.4.2 lets the driver choose; Linux sends one, two, or one for each page).

use vm_memory::VolatileSlice;

use crate::devices::virtio::buffers::{ChainError, gather_readable, gather_writable};
use crate::devices::virtio::ring::Chain;
use crate::memory::GuestMemory;

/// Why a chain holds no packet.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PacketError {
    /// The chain itself is malformed.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The chain is shorter than it must be.
    #[error("{0} bytes are too few")]
    TooShort(usize),
}

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) socket_type: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

/// VIRTIO_VSOCK_TYPE_STREAM.
pub(super) const TYPE_STREAM: u16 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender of the packet will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender of the packet will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// VIRTIO_VSOCK_OP_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    ReadWrite = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    pub(super) fn from_wire(op: u16) -> Option<Self> {
        Some(match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

impl Header {
    /// Its size in bytes.
    pub(super) const SIZE: usize = Self::SIZE_U32 as usize;
    const SIZE_U32: u32 = 44;

    pub(super) fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            socket_type: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn field<const N: usize>(bytes: &[u8; Header::SIZE], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Pieces of guest memory, in order; none of them is empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers<'a> {
    slices: Vec<VolatileSlice<'a>>,
    len: usize,
}

impl<'a> Buffers<'a> {
    fn new(slices: Vec<VolatileSlice<'a>>) -> Self {
        let mut buffers = Self::default();
        for slice in slices {
            buffers.push(slice);
        }
        buffers
    }

    fn push(&mut self, slice: VolatileSlice<'a>) {
        if !slice.is_empty() {
            self.len += slice.len();
            self.slices.push(slice);
        }
    }

    /// How many bytes they hold.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The pieces, none empty.
    pub(super) fn slices(&self) -> &[VolatileSlice<'a>] {
        &self.slices
    }

    /// The pieces from byte `start` on, at most `limit` bytes.
    pub(super) fn range(&self, start: usize, limit: usize) -> Buffers<'a> {
        let mut range = Buffers::default();
        let mut skip = start;
        for slice in &self.slices {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let count = (slice.len() - skipped).min(limit - range.len);
            // Both are within the slice; were they not, the piece would be left out.
            if let Ok(part) = slice.subslice(skipped, count) {
                range.push(part);
            }
        }
        range
    }

    /// Copies the first bytes out, as many as both have.
    fn copy_to(&self, bytes: &mut [u8]) {
        let mut at = 0;
        for slice in &self.slices {
            at += slice.copy_to(&mut bytes[at..]);
        }
    }

    /// Copies bytes in, as many as both have.
    fn copy_from(&self, bytes: &[u8]) {
        let mut at = 0;
        for slice in &self.slices {
            let count = slice.len().min(bytes.len() - at);
            slice.copy_from(&bytes[at..at + count]);
            at += count;
        }
    }
}

/// A packet from the guest.
#[derive(Debug)]
pub(super) struct Packet<'a> {
    /// A copy: the guest cannot change it under way.
    pub(super) header: Header,
    /// Exactly the bytes that the header announces; none if the chain has fewer, or if they are more than any
    /// connection may have under way.
    pub(super) payload: Option<Buffers<'a>>,
}

impl<'a> Packet<'a> {
    /// Reads the packet in a chain of the transmit queue.
    ///
    /// # Errors
    /// The chain is malformed or too short for a header.
    pub(super) fn from_chain(
        memory: &'a GuestMemory,
        chain: Chain<'a>,
    ) -> Result<Self, PacketError> {
        let mut slices = Vec::new();
        gather_readable(memory, chain, &mut slices)?;
        let buffers = Buffers::new(slices);
        if buffers.len() < Header::SIZE {
            return Err(PacketError::TooShort(buffers.len()));
        }
        let mut bytes = [0; Header::SIZE];
        buffers.range(0, Header::SIZE).copy_to(&mut bytes);
        let header = Header::from_bytes(&bytes);
        // A connection that takes more than its credit at once does not exist.
        let len = header.len as usize;
        let payload = buffers.range(Header::SIZE, len.min(super::BUF_ALLOC as usize));
        Ok(Self {
            header,
            payload: (payload.len() == len).then_some(payload),
        })
    }
}

/// Room for a packet to the guest.
#[derive(Debug)]
pub(super) struct PacketRoom<'a> {
    header: Buffers<'a>,
    /// Room for the payload, at least one byte.
    pub(super) payload: Buffers<'a>,
}

impl<'a> PacketRoom<'a> {
    /// The most payload that is put into one packet.
    const MAX_PAYLOAD: usize = 64 * 1024;

    /// The room in a chain of the receive queue.
    ///
    /// # Errors
    /// The chain is malformed or too short for any data.
    pub(super) fn from_chain(
        memory: &'a GuestMemory,
        chain: Chain<'a>,
    ) -> Result<Self, PacketError> {
        let mut slices = Vec::new();
        gather_writable(memory, chain, &mut slices)?;
        let buffers = Buffers::new(slices);
        if buffers.len() <= Header::SIZE {
            return Err(PacketError::TooShort(buffers.len()));
        }
        Ok(Self {
            header: buffers.range(0, Header::SIZE),
            payload: buffers.range(Header::SIZE, Self::MAX_PAYLOAD),
        })
    }

    /// Writes the header; the payload is in its place already. Gives the number of bytes used.
    pub(super) fn finish(self, header: Header) -> u32 {
        self.header.copy_from(&header.to_bytes());
        Header::SIZE_U32 + header.len
    }
}
