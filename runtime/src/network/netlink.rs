//! Questions and changes over rtnetlink, each of which waits for its answer.

use std::future::Future;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::{Handle, IpVersion, LinkMessageBuilder, LinkUnspec};
use tokio::runtime::{Builder, Runtime};

use super::error::{Error, NetlinkError};
use super::link::Link;
use super::state::SavedNeighbour;

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

    pub(super) fn links(&self) -> Result<Vec<Link>, Error> {
        let messages: Vec<LinkMessage> = self.ask(
            "list",
            "the links",
            self.handle.link().get().execute().try_collect(),
        )?;
        Ok(messages.iter().filter_map(Link::parse).collect())
    }

    pub(super) fn link_by_name(&self, name: &str) -> Result<Option<Link>, Error> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    pub(super) fn link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        Ok(self.links()?.into_iter().find(|link| link.index == index))
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

    pub(super) fn ask<T>(
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
