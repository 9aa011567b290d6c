//! Queries of containers to Docker's embedded DNS server, which is at [`ADDRESS`] inside the network namespace of the
//! sandbox on the host. The agent listens on the same address in the guest, and opens a vsock connection to port
//! [`crate::ports::DNS`] of the host for each query.
//!
//! The first byte of a connection says by what the query came: see [`Transport`]. What follows, both ways, are
//! messages as DNS over TCP has them (RFC 1035 §4.2.2): two bytes of length, the most significant first, and so many
//! bytes of message.
//!
//! - [`Transport::Datagram`]: one query from the guest, and one answer from the host, which has asked by a datagram as
//!   well, so that an answer is cut short where the server cuts it. Without an answer the host closes.
//! - [`Transport::Stream`]: all that the two ends of a TCP connection to the server say to each other, and their
//!   half-closes.
//!
//! The host reads no more of a message than it needs to pass it on, and lets the guest reach no other server.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Where the server is, in the namespace on the host and in the guest.
pub const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);

/// The longest message, in bytes: what two bytes of length can say.
pub const MAX_MESSAGE: usize = 65535;

/// What carried a query to the agent, and carries it to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Datagram,
    /// TCP.
    Stream,
}

impl Transport {
    /// The first byte of a connection.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Datagram => b'u',
            Self::Stream => b't',
        }
    }

    /// What the first byte of a connection says.
    pub const fn of(byte: u8) -> Option<Self> {
        match byte {
            b'u' => Some(Self::Datagram),
            b't' => Some(Self::Stream),
            _ => None,
        }
    }
}

/// The two bytes before a message of `length` bytes; nothing if that is more than [`MAX_MESSAGE`].
pub fn length_prefix(length: usize) -> Option<[u8; 2]> {
    u16::try_from(length).ok().map(u16::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_reads_back_as_it_was_written_and_other_bytes_are_none() {
        for transport in [Transport::Datagram, Transport::Stream] {
            assert_eq!(Transport::of(transport.byte()), Some(transport));
        }
        let known = (0..=u8::MAX).filter(|byte| Transport::of(*byte).is_some());
        assert_eq!(known.count(), 2);
    }

    #[test]
    fn a_length_has_its_most_significant_byte_first_and_an_end() {
        assert_eq!(length_prefix(0x1234), Some([0x12, 0x34]));
        assert_eq!(length_prefix(MAX_MESSAGE), Some([0xff, 0xff]));
        assert_eq!(length_prefix(MAX_MESSAGE + 1), None);
    }
}
