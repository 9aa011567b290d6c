//! Makes the wiring of a namespace equal to what the namespace holds.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use hull_agent_protocol::agent::SetNetworkRequest;
use hull_vmm_protocol::config::NetConfig;
use netlink_packet_route::link::InfoKind;

use super::discover::Snapshot;
use super::error::Error;
use super::link::{Link, Links};
use super::mac::MacAddress;
use super::model::{self, Wiring, Work};
use super::netlink::Netlink;
use super::netns::Netns;
use super::state::{
    Model, NetworkState, NicState, SavedSetting, SavedSysctl, UplinkState, index_of_own_name,
};
use super::{guest, sysctl, tap, undo};

/// The smallest MTU with which a link has IPv4.
const MIN_MTU: u32 = 68;

/// What makes a bridge hand its packets to iptables, where the kernel has that per network namespace.
const BRIDGE_FILTERS: [&str; 3] = [
    "bridge-nf-call-iptables",
    "bridge-nf-call-ip6tables",
    "bridge-nf-call-arptables",
];

/// What the caller wants of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How uplinks are wired.
    pub model: Model,
    /// Queue pairs of each NIC: 1, or as many as the sandbox has vCPUs.
    pub queue_pairs: u16,
}

/// Keeps the state where a later process finds it.
pub type Persist<'a> = dyn FnMut(&NetworkState) -> io::Result<()> + Send + 'a;

/// What is to be done in the VM, in this order: `detach`, `attach`, `guest`.
#[derive(Debug)]
#[must_use]
pub struct Reconciled {
    /// Ids of the NICs that are to be taken from the VM. Their taps go when the VMM closes them. A VM may lack one: a
    /// NIC that an earlier caller was given, and did not attach, has lost its tap and is here.
    pub detach: Vec<String>,
    /// NICs that the VM does not have yet. Dropping one closes its tap, which deletes it; the next call then makes it
    /// anew.
    pub attach: Vec<NewNic>,
    /// The whole network as the guest shall have it.
    pub guest: SetNetworkRequest,
    /// What the namespace holds that the guest will not have, and why. A caller that creates a sandbox fails if there is any
    /// [`NotCarried::Uplink`].
    pub not_carried: Vec<NotCarried>,
}

/// A NIC for the VM.
#[derive(Debug)]
pub struct NewNic {
    /// The device that the VMM makes.
    pub config: NetConfig,
    /// Its tap, one descriptor for each queue pair, with `IFF_VNET_HDR` and a header of 12 bytes, not blocking.
    pub taps: Vec<OwnedFd>,
}

/// Something of the namespace that the guest will not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCarried {
    /// An interface in use.
    #[error("interface {name} cannot be given to the VM: {reason}")]
    Uplink {
        /// The interface.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A route.
    #[error("route {destination} cannot be given to the VM: {reason}")]
    Route {
        /// Its destination.
        destination: String,
        /// Why not.
        reason: String,
    },
    /// Metrics of a route, which is carried without them.
    #[error("route {destination} goes to the VM without its metrics other than the MTU")]
    RouteMetrics {
        /// Its destination.
        destination: String,
    },
    /// A policy rule.
    #[error("rule {priority} cannot be given to the VM: {reason}")]
    Rule {
        /// Its priority.
        priority: u32,
        /// Why not.
        reason: String,
    },
}

/// Wires what `netns` holds now, and says what the VM and its guest are to be told. See the module's documentation.
///
/// When wiring an uplink fails, what this call has done is undone; NICs of earlier calls stay.
///
/// # Errors
/// See [`Error`].
pub fn reconcile(
    netns: &Netns,
    options: &Options,
    state: &mut NetworkState,
    persist: &mut Persist<'_>,
) -> Result<Reconciled, Error> {
    let wired_elsewhere = state.netns.is_some_and(|id| id != netns.id());
    if wired_elsewhere && !(state.nics.is_empty() && state.sysctls.is_empty()) {
        return Err(Error::OtherNetns);
    }
    state.netns = Some(netns.id());
    netns.run(|| {
        let mut reconciliation = Reconciliation {
            netlink: &Netlink::connect()?,
            options,
            state,
            persist,
        };
        let detach = reconciliation.release_what_is_broken()?;
        let (attach, mut not_carried) = reconciliation.wire_what_is_new()?;
        let snapshot = Snapshot::take(reconciliation.netlink)?;
        let (guest, left_out) = guest::view(&snapshot, &reconciliation.state.nics);
        not_carried.extend(left_out);
        Ok(Reconciled {
            detach,
            attach,
            guest,
            not_carried,
        })
    })?
}

struct Reconciliation<'a, 'p> {
    netlink: &'a Netlink,
    options: &'a Options,
    state: &'a mut NetworkState,
    persist: &'a mut Persist<'p>,
}

impl Reconciliation<'_, '_> {
    fn persist(&mut self) -> Result<(), Error> {
        (self.persist)(self.state).map_err(Error::Persist)
    }

    /// Takes apart each NIC whose uplink has gone, has changed what a NIC cannot follow, or whose wiring is no longer
    /// whole; the others follow their uplinks. Gives the ids of those taken apart.
    fn release_what_is_broken(&mut self) -> Result<Vec<String>, Error> {
        let links = self.netlink.links()?;
        let mut released = Vec::new();
        for nic in self.state.nics.clone() {
            let uplink = links.indexed(nic.uplink.ifindex);
            match uplink.filter(|uplink| is_whole(&nic, uplink, &links)) {
                Some(uplink) => self.follow(&nic, uplink, &links)?,
                None => {
                    undo::release(self.netlink, self.state, nic.index, true, self.persist)?;
                    released.push(nic.id());
                }
            }
        }
        Ok(released)
    }

    /// Gives the tap the uplink's MTU, and notes the uplink's name.
    fn follow(&mut self, nic: &NicState, uplink: &Link, links: &Links) -> Result<(), Error> {
        if let Some(tap) = links
            .named(&nic.tap_name())
            .filter(|tap| tap.mtu != uplink.mtu)
        {
            let mtu = uplink.mtu;
            self.netlink
                .change("set the MTU of", tap, |change| change.mtu(mtu))?;
        }
        if nic.uplink.name == uplink.name {
            return Ok(());
        }
        for known in &mut self.state.nics {
            if known.index == nic.index {
                known.uplink.name.clone_from(&uplink.name);
            }
        }
        self.persist()
    }

    /// Wires uplinks that have no NIC yet. When one fails, those before it are released as well: nobody has been told
    /// of them.
    fn wire_what_is_new(&mut self) -> Result<(Vec<NewNic>, Vec<NotCarried>), Error> {
        let mut new_nics = Vec::new();
        let mut not_carried = Vec::new();
        let Some(wiring) = model::wiring(self.options.model) else {
            return Ok((new_nics, not_carried));
        };
        let snapshot = Snapshot::take(self.netlink)?;
        let known = self.state.nics.len();
        for link in &snapshot.links.0 {
            let mut nics = self.state.nics.iter();
            if nics.any(|nic| nic.uplink.ifindex == link.index)
                || !is_candidate(&snapshot.links, link)
            {
                continue;
            }
            match self.take(&snapshot, wiring, link) {
                Ok(Ok(nic)) => new_nics.push(nic),
                Ok(Err(reason)) if is_in_use(&snapshot, link) => {
                    not_carried.push(NotCarried::Uplink {
                        name: link.name.clone(),
                        reason,
                    });
                }
                // Kernels put links into every namespace that nobody uses: `tunl0`, `gretap0`.
                Ok(Err(_)) => {}
                Err(failure) => {
                    drop(new_nics);
                    return Err(self.release_new(known, failure));
                }
            }
        }
        Ok((new_nics, not_carried))
    }

    /// Wires one uplink, or says why it cannot have a NIC.
    fn take(
        &mut self,
        snapshot: &Snapshot,
        wiring: &dyn Wiring,
        link: &Link,
    ) -> Result<Result<NewNic, String>, Error> {
        match self.suitable(snapshot, wiring, link)? {
            Ok((mac, mtu)) => self.wire(snapshot, wiring, link, mac, mtu).map(Ok),
            Err(reason) => Ok(Err(reason)),
        }
    }

    /// Releases the NICs after the first `known` ones because of `failure`.
    fn release_new(&mut self, known: usize, failure: Error) -> Error {
        let new: Vec<u16> = self
            .state
            .nics
            .iter()
            .skip(known)
            .map(|nic| nic.index)
            .collect();
        let mut released = Ok(());
        for index in new.into_iter().rev() {
            let one = undo::release(self.netlink, self.state, index, false, self.persist);
            released = released.and(one);
        }
        match (released, failure) {
            (Ok(()), failure) => failure,
            // The namespace is as it was, and what is kept names too much at worst.
            (Err(Error::Persist(_)), failure @ Error::Persist(_)) => failure,
            (Err(source), failure) => Error::Undo {
                failure: Box::new(failure),
                source: Box::new(source),
            },
        }
    }

    /// The MAC address and the MTU of the NIC that stands for `link`, or why there cannot be one.
    fn suitable(
        &self,
        snapshot: &Snapshot,
        wiring: &dyn Wiring,
        link: &Link,
    ) -> Result<Result<(MacAddress, u16), String>, Error> {
        let master = link.master.and_then(|index| snapshot.links.indexed(index));
        if let Some(vrf) = master {
            return Ok(Err(format!("it belongs to the VRF {}", vrf.name)));
        }
        let Some(mac) = link.mac.filter(|mac| mac.is_unicast()) else {
            return Ok(Err("it does not carry Ethernet frames".into()));
        };
        let twin = self.state.nics.iter().find(|nic| nic.uplink.mac == mac);
        if let Some(nic) = twin {
            let name = &nic.uplink.name;
            return Ok(Err(format!("{name} has the same MAC address, {mac}")));
        }
        let mtu = match u16::try_from(link.mtu) {
            Ok(mtu) if (MIN_MTU..=tap::MAX_MTU).contains(&link.mtu) => mtu,
            _ => {
                let (mtu, max) = (link.mtu, tap::MAX_MTU);
                return Ok(Err(format!(
                    "its MTU is {mtu}, and a tap has {MIN_MTU} to {max}"
                )));
            }
        };
        let objection = wiring.objection(self.netlink, link)?;
        Ok(objection.map_or(Ok((mac, mtu)), |reason| Err(reason.into())))
    }

    fn wire(
        &mut self,
        snapshot: &Snapshot,
        wiring: &dyn Wiring,
        link: &Link,
        mac: MacAddress,
        mtu: u16,
    ) -> Result<NewNic, Error> {
        self.quieten_bridge_filters()?;
        let neighbours = snapshot.neighbours.iter();
        let nic = NicState {
            index: self.free_index(&snapshot.links)?,
            model: self.options.model,
            uplink: UplinkState {
                name: link.name.clone(),
                ifindex: link.index,
                mac,
                arp: link.does_arp(),
                ipv6: ipv6_settings(wiring, link)?,
            },
            mtu,
            queue_pairs: self.options.queue_pairs.max(1),
            neighbours: neighbours
                .filter(|(index, _)| *index == link.index)
                .map(|(_, neighbour)| *neighbour)
                .collect(),
        };
        self.state.nics.push(nic.clone());
        if let Err(error) = self.persist() {
            self.state.nics.pop();
            return Err(error);
        }
        let mut work = Work {
            netlink: self.netlink,
            nic: &nic,
            taps: vec![],
            vmm_has_tap: false,
        };
        model::wire(wiring.steps(), &mut work)?;
        let taps = work.taps;
        if let Some(wired) = self
            .state
            .nics
            .last_mut()
            .filter(|nic| !nic.neighbours.is_empty())
        {
            wired.neighbours.clear();
            self.persist()?;
        }
        let config = NetConfig {
            id: nic.id(),
            mac: mac.to_string(),
            mtu,
        };
        Ok(NewNic { config, taps })
    }

    /// The lowest index that neither a NIC nor a link's name has. The tap of a NIC that was taken apart keeps its
    /// name until the VMM closes it.
    fn free_index(&self, links: &Links) -> Result<u16, Error> {
        let nics = self.state.nics.iter().map(|nic| nic.index);
        let names = links
            .0
            .iter()
            .filter_map(|link| index_of_own_name(&link.name));
        let taken: HashSet<u16> = nics.chain(names).collect();
        (0..=u16::MAX)
            .find(|index| !taken.contains(index))
            .ok_or(Error::Exhausted)
    }

    /// Keeps the namespace's iptables rules, which are the user's, from seeing what crosses hull's bridges.
    fn quieten_bridge_filters(&mut self) -> Result<(), Error> {
        for name in BRIDGE_FILTERS {
            let path = Path::new("/proc/sys/net/bridge").join(name);
            match sysctl::read(&path)? {
                Some(value) if value != "0" => {
                    self.state.sysctls.push(SavedSysctl {
                        path: path.clone(),
                        value,
                    });
                    self.persist()?;
                    sysctl::write(&path, "0")?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn ipv6_settings(wiring: &dyn Wiring, link: &Link) -> Result<Vec<SavedSetting>, Error> {
    let mut settings = Vec::new();
    for name in wiring.ipv6_settings() {
        if let Some(value) = sysctl::read(&sysctl::conf("ipv6", &link.name, name))? {
            settings.push(SavedSetting {
                name: (*name).into(),
                value,
            });
        }
    }
    Ok(settings)
}

/// Whether a NIC can stay: its uplink is what it was, and everything between the two is in place.
fn is_whole(nic: &NicState, uplink: &Link, links: &Links) -> bool {
    model::wiring(nic.model).is_some_and(|wiring| wiring.is_intact(nic, uplink, links))
        && uplink.mtu <= nic.mtu.into()
}

/// Whether a link is the container's: not the loopback interface, not hull's own, and not behind another link.
fn is_candidate(links: &Links, link: &Link) -> bool {
    let own_kind = link.is(&InfoKind::Bridge) || link.is(&InfoKind::Tun);
    if link.is_loopback() || (own_kind && index_of_own_name(&link.name).is_some()) {
        return false;
    }
    let master = link.master.and_then(|index| links.indexed(index));
    master.is_none_or(|master| master.is(&InfoKind::Vrf))
}

fn is_in_use(snapshot: &Snapshot, link: &Link) -> bool {
    link.is_up() || snapshot.addresses_of(link).next().is_some()
}
