//! Hears of changes of a network namespace: rtnetlink(7)'s multicast groups.
//!
//! An event says no more than that it is time to look, so nothing is lost with one that the kernel dropped for want
//! of room (`ENOBUFS`): that is an event as well.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily as SocketFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind,
    recv, socket,
};

use super::error::Error;

/// `RTNLGRP_*` of <linux/rtnetlink.h>.
const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_TC,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
];

/// More than the kernel puts into one packet.
const PACKET: usize = 64 * 1024;
/// `struct nlmsghdr`: length (4 bytes), type (2), flags, sequence, port; all in the machine's order.
const HEADER: usize = 16;

/// Hears of the changes of the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Watch {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// Addresses of the permanent neighbours that were seen last: see [`Watch::expect_neighbours`].
    neighbours: HashSet<IpAddr>,
}

impl Watch {
    /// Listens from now on.
    ///
    /// # Errors
    /// See [`Error::NetlinkSocket`].
    pub fn start() -> Result<Self, Error> {
        let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        let open = || -> nix::Result<OwnedFd> {
            let socket = socket(
                SocketFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::NetlinkRoute,
            )?;
            // Port 0: the kernel chooses one.
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(|errno| Error::NetlinkSocket(errno.into()))?,
            buffer: vec![0; PACKET],
            neighbours: HashSet::new(),
        })
    }

    /// Says which neighbours are permanent now, so that their change into something else is noticed. Neighbours that
    /// the kernel learns and forgets by itself are no news.
    pub fn expect_neighbours(&mut self, neighbours: HashSet<IpAddr>) {
        self.neighbours = neighbours;
    }

    /// Takes all events that have come; says whether any of them is a reason to look at the namespace.
    ///
    /// # Errors
    /// See [`Error::NetlinkSocket`].
    pub fn drain(&mut self) -> Result<bool, Error> {
        let mut news = false;
        loop {
            let received = recv(
                self.socket.as_raw_fd(),
                &mut self.buffer,
                MsgFlags::MSG_TRUNC,
            );
            match received {
                Ok(length) => {
                    let packet = self.buffer.get(..length);
                    // One that did not fit cannot be judged.
                    news |= packet.is_none_or(|packet| is_news(packet, &self.neighbours));
                }
                Err(Errno::EAGAIN) => return Ok(news),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => news = true,
                Err(errno) => return Err(Error::NetlinkSocket(io::Error::from(errno))),
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether a packet holds a message that is a reason to look. So is one that cannot be read.
fn is_news(mut packet: &[u8], permanent: &HashSet<IpAddr>) -> bool {
    while let Some((header, _)) = packet.split_at_checked(HEADER) {
        let [a, b, c, d, e, f, ..] = *header else {
            return true;
        };
        let kind = u16::from_ne_bytes([e, f]);
        let message = usize::try_from(u32::from_ne_bytes([a, b, c, d]))
            .ok()
            .filter(|length| *length >= HEADER)
            .and_then(|length| packet.get(..length));
        let Some(message) = message else {
            return true;
        };
        let is_neighbour = matches!(kind, libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH);
        if !is_neighbour || is_about_permanent(message, permanent) {
            return true;
        }
        packet = packet
            .get(message.len().next_multiple_of(4)..)
            .unwrap_or_default();
    }
    false
}

/// Whether a message about a neighbour is about one that somebody entered, enters or takes away. When such a one is
/// deleted, or becomes one that the kernel may forget, the message does not say what it was: its address does.
fn is_about_permanent(message: &[u8], permanent: &HashSet<IpAddr>) -> bool {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|read| read.payload) {
        Ok(NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewNeighbour(neighbour)
            | RouteNetlinkMessage::DelNeighbour(neighbour),
        )) => {
            // The other families' are entries of bridges.
            matches!(
                neighbour.header.family,
                AddressFamily::Inet | AddressFamily::Inet6
            ) && (neighbour.header.state == NeighbourState::Permanent
                || address_of(&neighbour).is_some_and(|address| permanent.contains(&address)))
        }
        _ => true,
    }
}

fn address_of(neighbour: &NeighbourMessage) -> Option<IpAddr> {
    let mut attributes = neighbour.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some((*ip).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    })
}
