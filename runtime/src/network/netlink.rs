//! Questions and changes over rtnetlink, each of which waits for its answer.

use std::future::Future;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::tc::{TcHandle, TcMessage};
use rtnetlink::{
    Handle, IpVersion, LinkBridgePort, LinkGetRequest, LinkMessageBuilder, LinkUnspec,
};
use tokio::runtime::{Builder, Runtime};

use super::error::{Error, NetlinkError};
use super::link::{Link, Links};
use super::state::SavedNeighbour;

/// The handle of every ingress qdisc, `ffff:`.
const INGRESS_QDISC: u32 = 0xffff_0000;
const ETH_P_ALL: u16 = 3;

/// A connection to the network namespace of the thread that made it, for that thread.
#[derive(Debug)]
pub(super) struct Netlink {
    // Runs the connection whenever a request waits.
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    pub(super) fn connect() -> Result<Self, Error> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(Error::NetlinkSocket)?;
        let guard = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::NetlinkSocket)?;
        runtime.spawn(connection);
        drop(guard);
        Ok(Self { runtime, handle })
    }

    pub(super) fn links(&self) -> Result<Links, Error> {
        let request = self.handle.link().get();
        let messages: Vec<LinkMessage> =
            self.ask("list", "the links", request.execute().try_collect())?;
        Ok(Links(messages.iter().filter_map(Link::parse).collect()))
    }

    pub(super) fn link_by_name(&self, name: &str) -> Result<Option<Link>, Error> {
        self.link(name, self.handle.link().get().match_name(name))
    }

    pub(super) fn link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_index(index);
        self.link(&format!("number {index}"), request)
    }

    fn link(&self, object: &str, request: LinkGetRequest) -> Result<Option<Link>, Error> {
        let messages: Result<Vec<LinkMessage>, Error> =
            self.ask("look up the link", object, request.execute().try_collect());
        match messages {
            Ok(messages) => Ok(messages.first().and_then(Link::parse)),
            Err(Error::Netlink { source, .. }) if source.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn addresses(&self) -> Result<Vec<AddressMessage>, Error> {
        let request = self.handle.address().get();
        self.ask("list", "the addresses", request.execute().try_collect())
    }

    pub(super) fn routes(&self) -> Result<Vec<RouteMessage>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            // A dump of all tables, types, scopes and protocols.
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let request = self.handle.route().get(filter);
            let of_family: Vec<RouteMessage> =
                self.ask("list", "the routes", request.execute().try_collect())?;
            routes.extend(of_family);
        }
        Ok(routes)
    }

    pub(super) fn rules(&self) -> Result<Vec<RuleMessage>, Error> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let request = self.handle.rule().get(version);
            let family: Vec<RuleMessage> =
                self.ask("list", "the rules", request.execute().try_collect())?;
            rules.extend(family);
        }
        Ok(rules)
    }

    pub(super) fn neighbours(&self) -> Result<Vec<NeighbourMessage>, Error> {
        let request = self.handle.neighbours().get();
        self.ask("list", "the neighbours", request.execute().try_collect())
    }

    pub(super) fn add_neighbour(
        &self,
        link: &Link,
        neighbour: &SavedNeighbour,
    ) -> Result<(), Error> {
        let request = self
            .handle
            .neighbours()
            .add(link.index, neighbour.address)
            .link_layer_address(&neighbour.mac.0)
            .replace();
        let object = format!("{} to {}", neighbour.address, link.name);
        self.ask("add the neighbour", &object, request.execute())
    }

    pub(super) fn add_link(&self, name: &str, message: LinkMessage) -> Result<(), Error> {
        let request = self.handle.link().add(message);
        self.ask("add the link", name, request.execute())
    }

    /// Changes what `change` says of a link.
    pub(super) fn change(
        &self,
        operation: &'static str,
        link: &Link,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), Error> {
        let message = change(LinkUnspec::new_with_index(link.index)).build();
        self.ask(
            operation,
            &link.name,
            self.handle.link().set(message).execute(),
        )
    }

    /// Changes what `change` says of a link as the port of a bridge.
    pub(super) fn change_port(
        &self,
        operation: &'static str,
        link: &Link,
        change: impl FnOnce(LinkMessageBuilder<LinkBridgePort>) -> LinkMessageBuilder<LinkBridgePort>,
    ) -> Result<(), Error> {
        let message = change(LinkBridgePort::new(link.index)).build();
        let request = self.handle.link().set_port(message);
        self.ask(operation, &link.name, request.execute())
    }

    pub(super) fn set_up(&self, link: &Link) -> Result<(), Error> {
        self.change("set up", link, LinkMessageBuilder::up)
    }

    /// Deletes a link; one that is gone already is no error.
    pub(super) fn delete(&self, link: &Link) -> Result<(), Error> {
        let request = self.handle.link().del(link.index);
        match self.ask("delete", &link.name, request.execute()) {
            Err(Error::Netlink { source, .. }) if source.errno() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Sends all that arrives at `from` to `to`, by an ingress qdisc of its own.
    pub(super) fn redirect(&self, from: &Link, to: &Link) -> Result<(), Error> {
        let request = self.handle.qdisc().add(signed(from.index)).ingress();
        self.ask("add an ingress qdisc to", &from.name, request.execute())?;
        let filter = self
            .handle
            .traffic_filter(signed(from.index))
            .add()
            .parent(INGRESS_QDISC)
            .protocol(ETH_P_ALL.to_be())
            .redirect(to.index);
        self.ask("redirect what arrives at", &from.name, async {
            filter?.execute().await
        })
    }

    /// Whether the link has an ingress or clsact qdisc.
    pub(super) fn has_ingress_qdisc(&self, link: &Link) -> Result<bool, Error> {
        let request = self.handle.qdisc().get().index(signed(link.index));
        let qdiscs: Vec<TcMessage> = self.ask(
            "list the qdiscs of",
            &link.name,
            request.execute().try_collect(),
        )?;
        Ok(qdiscs.iter().any(|qdisc| {
            qdisc.header.index == signed(link.index) && qdisc.header.parent == TcHandle::INGRESS
        }))
    }

    /// Deletes the ingress qdisc, with its filters; none is no error.
    pub(super) fn delete_ingress_qdisc(&self, link: &Link) -> Result<(), Error> {
        let mut request = self.handle.qdisc().del(signed(link.index));
        request.message_mut().header.parent = TcHandle::INGRESS;
        match self.ask("delete the ingress qdisc of", &link.name, request.execute()) {
            Err(Error::Netlink { source, .. })
                if matches!(
                    source.errno(),
                    Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn ask<T>(
        &self,
        operation: &'static str,
        object: &str,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, Error> {
        self.runtime
            .block_on(request)
            .map_err(|error| Error::Netlink {
                operation,
                object: object.into(),
                source: NetlinkError::from(error),
            })
    }
}

/// A link's index as traffic control has it. The kernel's indices are positive ints.
fn signed(index: u32) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}
