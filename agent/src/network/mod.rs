//! The guest's network: makes NICs, addresses, routes, neighbours and rules be what the runtime says.
//!
//! Runs in the agent's event loop, one request at a time. Each request is the whole of what is wanted: what the one
//! before had set and this one does not name is removed again; what a container set by itself stays. The key of an
//! interface is its NIC's permanent MAC address. What cannot be applied is told in a sentence each, and the rest is.

mod address;
mod channels;
mod dns;
mod embedded_dns;
mod link;
pub mod localhost;
mod neighbour;
mod netlink;
mod pci;
mod route;
mod rule;
mod wanted;

pub use channels::use_queue_pairs;
pub use dns::write_resolv_conf;
pub use netlink::NetlinkError;
pub use pci::{Sysfs, rescan as rescan_pci};
pub use wanted::RequestError;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use hull_agent_protocol::agent::SetNetworkRequest;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::error_text::with_causes;
use embedded_dns::EmbeddedDns;
use link::Link;
use netlink::Netlink;
use wanted::{Address, Interface, Mac, Wanted};

/// Why a request could not be applied at all.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The kernel could not be asked.
    #[error("configure the network")]
    Netlink(#[from] NetlinkError),
}

/// How often the kernel is asked for a NIC that is waited for.
const LOOK: Duration = Duration::from_millis(2);
/// How often it is told to look for new devices meanwhile.
const RESCAN: Duration = Duration::from_millis(250);

/// The guest's network, as far as the runtime has set it.
pub struct Network {
    sysfs: Sysfs,
    /// The request that was applied last.
    applied: Mutex<Wanted>,
    embedded_dns: EmbeddedDns,
}

impl Network {
    /// A network of which nothing is set.
    pub fn new(sysfs: Sysfs) -> Self {
        Self {
            sysfs,
            applied: Mutex::default(),
            embedded_dns: EmbeddedDns::default(),
        }
    }

    /// Applies a request; gives a sentence for each part of it that could not be.
    ///
    /// # Errors
    /// See [`NetworkError`]; nothing, or not all, is applied then.
    pub async fn set(&self, request: &SetNetworkRequest) -> Result<Vec<String>, NetworkError> {
        let wanted = Wanted::of(request)?;
        let mut applied = self.applied.lock().await;
        let netlink = Netlink::open()?;
        let mut failures = Vec::new();

        let wait = Duration::from_millis(request.wait_ms.into());
        let links = self
            .find(&netlink, &wanted.interfaces, wait, &mut failures)
            .await?;
        self.strip_vanished(
            &netlink,
            &applied.interfaces,
            &wanted,
            &links,
            &mut failures,
        )
        .await?;
        let nics: Vec<(&Interface, &Link)> = wanted
            .interfaces
            .iter()
            .filter_map(|interface| Some((interface, links.get(&interface.mac)?)))
            .collect();
        link::give_names(&netlink, &nics, &mut failures).await?;
        // Names, flags and MTUs as they are after the renaming.
        let links = link::by_mac(&netlink).await?;
        let indices = link::indices(&netlink).await?;
        let before = &applied.routes;
        route::remove(&netlink, before, &wanted.routes, &indices, &mut failures).await;
        let mut without_ipv6 = HashSet::new();
        for (interface, _) in &nics {
            let mut before = applied.interfaces.iter();
            let before = before.find(|before| before.mac == interface.mac);
            if let Some(link) = links.get(&interface.mac)
                && !configure(&netlink, interface, before, link, &mut failures).await?
            {
                without_ipv6.insert(interface.name.clone());
            }
        }
        let wanted = wanted.without_ipv6_on(&without_ipv6);

        route::add_all(&netlink, &wanted.routes, &indices, &mut failures).await;
        let before = &applied.neighbours;
        neighbour::replace(
            &netlink,
            before,
            &wanted.neighbours,
            &indices,
            &mut failures,
        )
        .await;
        rule::replace(&netlink, &applied.rules, &wanted.rules, &mut failures).await;
        let upstream = request
            .embedded_dns
            .as_ref()
            .map(|dns| servers(&dns.upstream_servers, &mut failures));
        if let Err(error) = self.embedded_dns.set(upstream).await {
            failures.push(format!("listen for DNS queries: {error}"));
        }
        let before = std::mem::replace(&mut *applied, wanted);
        if !failures.is_empty() {
            applied.keep_in_mind(before);
        }
        Ok(failures)
    }

    /// Finds the NICs of the interfaces; waits for those that the kernel has not seen yet.
    async fn find(
        &self,
        netlink: &Netlink,
        interfaces: &[Interface],
        wait: Duration,
        failures: &mut Vec<String>,
    ) -> Result<HashMap<Mac, Link>, NetworkError> {
        let end = Instant::now() + wait;
        let mut next_rescan = Instant::now();
        loop {
            let links = link::by_mac(netlink).await?;
            let missing: Vec<&Interface> = interfaces
                .iter()
                .filter(|interface| !links.contains_key(&interface.mac))
                .collect();
            if missing.is_empty() {
                return Ok(links);
            }
            let now = Instant::now();
            if now >= next_rescan {
                if let Err(error) = self.rescan().await {
                    failures.push(format!("look for new NICs: {error}"));
                }
                next_rescan = now + RESCAN;
                // The kernel has looked when the file is written.
                continue;
            }
            if now >= end {
                let absent = missing.iter().map(|interface| {
                    format!(
                        "{}: no NIC has the MAC address {}",
                        interface.name, interface.mac
                    )
                });
                failures.extend(absent);
                return Ok(links);
            }
            sleep(LOOK).await;
        }
    }

    /// Sets down the NICs that the last request had and this one has not, takes their addresses, and has their drivers
    /// let go of them, so that the VMM can take them away.
    async fn strip_vanished(
        &self,
        netlink: &Netlink,
        before: &[Interface],
        wanted: &Wanted,
        links: &HashMap<Mac, Link>,
        failures: &mut Vec<String>,
    ) -> Result<(), NetlinkError> {
        for interface in before {
            if wanted.interfaces.iter().any(|one| one.mac == interface.mac) {
                continue;
            }
            // A NIC that was unplugged is not there any more.
            let Some(link) = links.get(&interface.mac) else {
                continue;
            };
            if let Err(error) = link::set_up(netlink, link.index, false).await {
                failures.push(format!("set {} down: {}", link.name, with_causes(&error)));
            }
            address::remove(netlink, link, |_, _| true, failures).await?;
            let (interfaces, name) = (self.sysfs.interfaces.clone(), link.name.clone());
            let gone = tokio::task::spawn_blocking(move || pci::let_go(&interfaces, &name)).await;
            if let Err(error) = gone.map_err(io::Error::other).flatten() {
                failures.push(format!("let go of {}: {error}", link.name));
            }
        }
        Ok(())
    }

    /// Has the kernel look for new PCI devices.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn rescan(&self) -> io::Result<()> {
        let path = self.sysfs.rescan.clone();
        // Drivers probe new devices before the write returns.
        tokio::task::spawn_blocking(move || rescan_pci(&path))
            .await
            .map_err(io::Error::other)?
    }

    /// The directory of all network interfaces.
    pub fn interfaces(&self) -> &Path {
        &self.sysfs.interfaces
    }

    /// The file that has the kernel look for new PCI devices.
    pub fn pci_rescan(&self) -> &Path {
        &self.sysfs.rescan
    }
}

/// Makes one NIC be its interface, but for its name; `before` is what was made of it before. Says whether it has IPv6.
async fn configure(
    netlink: &Netlink,
    interface: &Interface,
    before: Option<&Interface>,
    link: &Link,
    failures: &mut Vec<String>,
) -> Result<bool, NetlinkError> {
    if link.name != interface.name {
        // The renaming has failed, and said so. By its name it may be another one's.
        return Ok(true);
    }
    let name = &interface.name;
    let has_ipv6 = match link::prepare_ipv6(interface, before) {
        Ok(has_ipv6) => has_ipv6,
        Err(error) => {
            failures.push(format!("set IPv6 on {name}: {error}"));
            true
        }
    };
    if interface.mtu > 0
        && interface.mtu != link.mtu
        && let Err(error) = link::set_mtu(netlink, link.index, interface.mtu).await
    {
        failures.push(format!(
            "set the MTU of {name} to {}: {}",
            interface.mtu,
            with_causes(&error)
        ));
    }
    // Before there are addresses, for those of a link without ARP are not asked after.
    if interface.arp != link.arp
        && let Err(error) = link::set_arp(netlink, link.index, interface.arp).await
    {
        failures.push(format!("set ARP of {name}: {}", with_causes(&error)));
    }
    let addresses = interface.addresses.iter();
    let addresses: Vec<Address> = addresses
        .filter(|address| has_ipv6 || address.prefix.address.is_ipv4())
        .cloned()
        .collect();
    let known = before.map_or(&[][..], |before| &before.addresses);
    address::replace(netlink, link, known, &addresses, failures).await?;
    if interface.up != link.up
        && let Err(error) = link::set_up(netlink, link.index, interface.up).await
    {
        let state = if interface.up { "up" } else { "down" };
        failures.push(format!("set {name} {state}: {}", with_causes(&error)));
    }
    Ok(has_ipv6)
}

/// The addresses of DNS servers, without those that are none.
fn servers(words: &[String], failures: &mut Vec<String>) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for word in words {
        match word.parse() {
            Ok(address) => servers.push(address),
            Err(_) => failures.push(format!("{word:?} is not the address of a DNS server")),
        }
    }
    servers
}

/// Sets `lo` up, with which the kernel gives it its addresses.
///
/// # Errors
/// When the kernel refuses.
pub async fn bring_loopback_up() -> Result<(), NetlinkError> {
    /// The kernel makes `lo` first in every network namespace.
    const LOOPBACK: u32 = 1;
    link::set_up(&Netlink::open()?, LOOPBACK, true).await
}

#[cfg(test)]
mod tests;
