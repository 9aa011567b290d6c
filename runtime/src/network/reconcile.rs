//! Makes the wiring of a namespace equal to what the namespace holds.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use hull_agent_protocol::agent::SetNetworkRequest;
use hull_vmm_protocol::config::NetConfig;
use serde::{Deserialize, Serialize};

use super::discover::Snapshot;
use super::error::Error;
use super::link::{Link, Links};
use super::model::{self, Wiring, Work};
use super::netlink::Netlink;
use super::netns::Netns;
use super::state::{
    Model, NetworkState, NicState, SavedSetting, SavedSysctl, UplinkState, index_of_id,
    index_of_own_name,
};
use super::uplink::{self, Refusal, Uplink};
use super::{guest, sysctl, undo};

/// What makes a bridge hand its packets to iptables, where the kernel has that per network namespace.
const BRIDGE_FILTERS: [&str; 3] = [
    "bridge-nf-call-iptables",
    "bridge-nf-call-ip6tables",
    "bridge-nf-call-arptables",
];

/// What the caller wants of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// How uplinks are wired.
    pub model: Model,
    /// Somebody has chosen it; an uplink that CNI has made may have another where nobody has.
    #[serde(default)]
    pub chosen: bool,
    /// Queue pairs of each NIC: 1, or as many as the sandbox has vCPUs.
    pub queue_pairs: u16,
}

/// Keeps the state where a later process finds it.
pub type Persist<'a> = dyn FnMut(&NetworkState) -> io::Result<()> + Send + 'a;

/// What is to be done in the VM, in this order: `detach`, `attach`, `guest`.
#[derive(Debug)]
#[must_use]
pub struct Reconciled {
    /// Ids of the NICs that are to be taken from the VM: [`NetworkState::leaving`], from which the caller takes each that
    /// is out of the VM. Their taps go when the VMM closes them. A VM may lack one: a NIC that an earlier caller was
    /// given, and did not attach, has lost its tap and is here.
    pub detach: Vec<String>,
    /// NICs that the VM does not have yet. Dropping one closes its tap, which deletes it; the next call then makes it
    /// anew.
    pub attach: Vec<NewNic>,
    /// The whole network as the guest shall have it.
    pub guest: SetNetworkRequest,
    /// What the namespace holds that the guest will not have, and why. A caller that creates a sandbox fails if there is any
    /// [`NotCarried::Uplink`].
    pub not_carried: Vec<NotCarried>,
    /// An IPv6 address is still being checked for duplicates, and is not in `guest` before that is over. What depends on
    /// it, such as a route, may fail in the guest until then.
    pub settling: bool,
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
        reconciliation.release_what_is_broken()?;
        let known = reconciliation.state.nics.len();
        reconciliation
            .complete()
            .map_err(|failure| reconciliation.release_new(known, failure))
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
    /// whole; the others follow their uplinks. Those taken apart are leaving the VM.
    fn release_what_is_broken(&mut self) -> Result<(), Error> {
        let links = self.netlink.links()?;
        let carriers = uplink::carriers(self.netlink, &links)?;
        for nic in self.state.nics.clone() {
            let uplink = links
                .indexed(nic.uplink.ifindex)
                .filter(|uplink| !carriers.contains(&uplink.index));
            match uplink {
                Some(uplink) if is_whole(self.netlink, &nic, uplink, &links)? => {
                    self.follow(&nic, uplink, &links)?;
                }
                _ => {
                    if !self.state.leaving.contains(&nic.id()) {
                        self.state.leaving.push(nic.id());
                    }
                    undo::release(self.netlink, self.state, nic.index, true, self.persist)?;
                }
            }
        }
        Ok(())
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

    /// Wires what is new, and looks at the whole.
    fn complete(&mut self) -> Result<Reconciled, Error> {
        let (attach, mut not_carried) = self.wire_what_is_new()?;
        let snapshot = Snapshot::take(self.netlink)?;
        let (guest, left_out) = guest::view(&snapshot, &self.state.nics);
        not_carried.extend(left_out);
        Ok(Reconciled {
            detach: self.state.leaving.clone(),
            attach,
            settling: snapshot.is_settling(&self.state.nics),
            guest,
            not_carried,
        })
    }

    fn wire_what_is_new(&mut self) -> Result<(Vec<NewNic>, Vec<NotCarried>), Error> {
        let mut new_nics = Vec::new();
        let mut not_carried = Vec::new();
        let snapshot = Snapshot::take(self.netlink)?;
        let carriers = uplink::carriers(self.netlink, &snapshot.links)?;
        for link in uplink::without_nic(&snapshot.links, &carriers, &self.state.nics) {
            let Some(wiring) = model::suited(self.options, link) else {
                continue;
            };
            match self.wire(&snapshot, &carriers, wiring, link) {
                Ok(nic) => new_nics.push(nic),
                Err(Refusal::Unsuitable(reason)) => {
                    if uplink::is_in_use(&snapshot, link) {
                        let name = link.name.clone();
                        not_carried.push(NotCarried::Uplink { name, reason });
                    }
                }
                Err(Refusal::Failed(error)) => return Err(error),
            }
        }
        Ok((new_nics, not_carried))
    }

    /// Releases the NICs after the first `known` ones because of `failure`: nobody has been told of them.
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

    fn wire(
        &mut self,
        snapshot: &Snapshot,
        carriers: &HashSet<u32>,
        wiring: &dyn Wiring,
        link: &Link,
    ) -> Result<NewNic, Refusal> {
        let uplink = Uplink::inspect(
            self.netlink,
            &snapshot.links,
            carriers,
            &self.state.nics,
            wiring,
            link,
        )?;
        self.quieten_bridge_filters()?;
        let nic = self.plan(snapshot, wiring, &uplink)?;
        self.state.nics.push(nic.clone());
        if let Err(error) = self.persist() {
            self.state.nics.pop();
            return Err(error.into());
        }
        let mut work = Work {
            netlink: self.netlink,
            nic: &nic,
            taps: vec![],
            vmm_has_tap: false,
        };
        model::wire(wiring.steps(), &mut work)?;
        let taps = work.taps;
        if !nic.neighbours.is_empty() {
            for wired in &mut self.state.nics {
                if wired.index == nic.index {
                    wired.neighbours.clear();
                }
            }
            self.persist()?;
        }
        let config = NetConfig::new(nic.id(), uplink.mac.to_string(), uplink.mtu);
        Ok(NewNic { config, taps })
    }

    /// Everything that undoing the wiring of `uplink` will need.
    fn plan(
        &self,
        snapshot: &Snapshot,
        wiring: &dyn Wiring,
        uplink: &Uplink<'_>,
    ) -> Result<NicState, Error> {
        let link = uplink.link;
        let neighbours = snapshot.neighbours.iter();
        let own_neighbours = neighbours.filter(|(index, _)| *index == link.index);
        Ok(NicState {
            index: self.free_index(&snapshot.links)?,
            model: wiring.model(),
            uplink: UplinkState {
                name: link.name.clone(),
                ifindex: link.index,
                mac: uplink.mac,
                arp: link.does_arp(),
                all_groups: wiring
                    .opens_multicast_filter(link)
                    .then(|| link.takes_all_groups()),
                ipv6: ipv6_settings(wiring, link)?,
            },
            mtu: uplink.mtu,
            queue_pairs: self.options.queue_pairs.max(1),
            neighbours: own_neighbours.map(|(_, neighbour)| *neighbour).collect(),
        })
    }

    /// The lowest index that neither a NIC, one that is leaving, nor a link's name has. The tap of a NIC that was taken
    /// apart keeps its name until the VMM closes it.
    fn free_index(&self, links: &Links) -> Result<u16, Error> {
        let leaving = self.state.leaving.iter();
        let leaving = leaving.filter_map(|id| index_of_id(id));
        let nics = self.state.nics.iter().map(|nic| nic.index).chain(leaving);
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
fn is_whole(
    netlink: &Netlink,
    nic: &NicState,
    uplink: &Link,
    links: &Links,
) -> Result<bool, Error> {
    match model::wiring(nic.model) {
        Some(wiring) if uplink.mtu <= nic.mtu.into() => {
            wiring.is_intact(netlink, nic, uplink, links)
        }
        _ => Ok(false),
    }
}
