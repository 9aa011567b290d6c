//! The sandbox's network: finds its namespace from whatever process that looks, and brings the VM and the guest in
//! line with what [`crate::network`] says.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hull_agent_protocol::agent::{EmbeddedDns, SetNetworkRequest};
use protobuf::Message;

use super::{Keep, Sandbox, SandboxError};
use crate::agent_client::AgentClient;
use crate::config::{Limits, Vhost};
use crate::network::{
    self, Model, Netns, NetworkState, NewNic, NotCarried, Reconciled, embedded_dns, open_vhost,
};
use crate::store::{SandboxRecord, StoreError};
use crate::vmm_process::Control;

/// How long the guest may take to see a NIC that was just attached, in milliseconds.
const NIC_LIMIT_MS: u32 = 20_000;

/// What is read of a resolver file, in bytes.
const RESOLVER_FILE_LIMIT: u64 = 16 * 1024;

/// Where the host's DNS servers are: the second tells where the first leads only to systemd-resolved.
const HOST_RESOLVER_FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What came of a look at the network namespace while containers run.
#[derive(Debug)]
pub struct Followed {
    /// Uplinks were wired or unwired.
    pub rewired: bool,
    /// What the namespace has and the guest has not, each a sentence.
    pub lacking: Vec<String>,
    /// Some of that may come right by another attempt.
    pub unfinished: bool,
    /// The permanent neighbours of the namespace.
    pub neighbours: HashSet<IpAddr>,
}

/// How far VM and guest have taken a network.
struct Applied {
    /// Why a NIC could not be attached, for each such NIC.
    unattached: Vec<crate::Error>,
    /// What the guest could not do, each a sentence.
    refused: Vec<String>,
}

impl Sandbox {
    /// Checks that a container whose annotations choose `asked` can be in this sandbox: all its containers share one
    /// network.
    ///
    /// # Errors
    /// The sandbox has another model.
    pub fn check_model(&self, asked: Option<Model>) -> Result<(), SandboxError> {
        let has = self.record.network_options.model;
        match asked {
            Some(asked) if asked != has => Err(SandboxError::OtherModel {
                id: self.record.id.clone(),
                has,
                asked,
            }),
            _ => Ok(()),
        }
    }

    /// Makes the network of VM and guest equal to what the network namespace holds now.
    ///
    /// # Errors
    /// An interface cannot be wired, or the VM, or the guest.
    pub fn reconcile_network(
        &mut self,
        netns: &Netns,
        agent: &mut AgentClient,
    ) -> Result<(), crate::Error> {
        let wanted = self.wire(netns)?;
        for not_carried in &wanted.not_carried {
            match not_carried {
                NotCarried::Uplink { .. } => {
                    return Err(SandboxError::Uplink(not_carried.to_string()).into());
                }
                _ => tracing::warn!("{not_carried}"),
            }
        }
        if self.is_applied(&wanted) {
            return Ok(());
        }
        let settling = wanted.settling;
        let Applied {
            unattached,
            refused,
        } = self.apply(wanted, agent)?;
        if let Some(error) = unattached.into_iter().next() {
            return Err(error);
        }
        for failure in refused {
            if settling {
                tracing::debug!("the guest's network, for now: {failure}");
            } else {
                tracing::warn!("the guest's network: {failure}");
            }
        }
        Ok(())
    }

    /// The same while containers run: what cannot be given to the guest does not keep the rest from it.
    ///
    /// # Errors
    /// The namespace cannot be read or wired, or the VM or the agent does not do its part. It may be tried again.
    pub fn follow_network(&mut self, netns: &Netns) -> Result<Followed, crate::Error> {
        let wanted = self.wire(netns)?;
        let not_carried = wanted.not_carried.iter();
        let neighbours = wanted.guest.neighbours.iter();
        let mut followed = Followed {
            rewired: !(wanted.attach.is_empty() && wanted.detach.is_empty()),
            lacking: not_carried.map(ToString::to_string).collect(),
            unfinished: false,
            neighbours: neighbours
                .filter_map(|neighbour| neighbour.address.parse().ok())
                .collect(),
        };
        if self.is_applied(&wanted) {
            return Ok(followed);
        }
        let settling = wanted.settling;
        let mut agent = self.agent()?;
        let Applied {
            unattached,
            refused,
        } = self.apply(wanted, &mut agent)?;
        tracing::debug!(
            rewired = followed.rewired,
            "the guest's network has followed"
        );
        followed.unfinished = !unattached.is_empty();
        let unattached = unattached.iter().map(|error| crate::error::chain(error));
        followed.lacking.extend(unattached);
        // What is settling is an event again once it has settled.
        if !settling {
            followed.unfinished |= !refused.is_empty();
            let refused = refused.iter();
            followed
                .lacking
                .extend(refused.map(|failure| format!("the guest's network: {failure}")));
        }
        Ok(followed)
    }

    /// Wires what the namespace holds now.
    fn wire(&mut self, netns: &Netns) -> Result<Reconciled, crate::Error> {
        let mut state = self.record.network.clone();
        let store = self.store.clone();
        let mut record = self.record.clone();
        let mut persist = |state: &NetworkState| {
            record.network = state.clone();
            store.save_sandbox(&record).map_err(io::Error::other)
        };
        let answer = network::reconcile(
            netns,
            &self.record.network_options,
            &mut state,
            &mut persist,
        );
        // Also after a failure: the state names what is left to undo.
        self.record.network = state;
        let mut wanted = answer?;
        wanted.guest.wait_ms = NIC_LIMIT_MS;
        if embedded_dns::is_served(netns)? {
            wanted.guest.embedded_dns = Some(EmbeddedDns {
                upstream_servers: self.upstream_servers()?,
                ..Default::default()
            })
            .into();
        }
        Ok(wanted)
    }

    /// The servers that Docker's embedded DNS server asks in the namespace. All containers of a sandbox have the same.
    fn upstream_servers(&self) -> Result<Vec<String>, StoreError> {
        let mut servers = Vec::new();
        for container in self.store.containers()? {
            if container.sandbox_id != self.record.id {
                continue;
            }
            let Some(path) = &container.resolver_file else {
                continue;
            };
            match read_start(path) {
                Ok(text) => servers.extend(
                    embedded_dns::upstream_servers(&text)
                        .unwrap_or_else(|| untold_upstream_servers(path)),
                ),
                Err(error) => tracing::debug!(path = %path.display(), %error, "resolver file"),
            }
        }
        let mut seen = HashSet::new();
        servers.retain(|server| seen.insert(*server));
        Ok(servers.iter().map(ToString::to_string).collect())
    }

    /// Whether VM and guest have all of it already.
    fn is_applied(&self, wanted: &Reconciled) -> bool {
        wanted.attach.is_empty()
            && wanted.detach.is_empty()
            && self.record.guest_network.is_some()
            && self.record.guest_network == digest(&wanted.guest)
    }

    /// Gives it to VM and guest, as far as they take it.
    fn apply(
        &mut self,
        mut wanted: Reconciled,
        agent: &mut AgentClient,
    ) -> Result<Applied, crate::Error> {
        // From here on nobody knows what the guest has, until it has said so.
        if self.record.guest_network.take().is_some() {
            self.save()?;
        }
        let control = Control::connect(&self.directory())?;
        if !wanted.detach.is_empty() {
            let mut staying = wanted.guest.clone();
            // What is attached below is new to the guest, also if it has the MAC address of a NIC that goes.
            staying.interfaces.retain(|interface| {
                wanted
                    .attach
                    .iter()
                    .all(|nic| nic.config.mac != interface.mac)
            });
            self.let_go(&control, staying, agent)?;
        }
        let mut unattached = Vec::new();
        for nic in wanted.attach {
            let mac = nic.config.mac.clone();
            if let Err(error) = self.attach_nic(&control, nic) {
                unattached.push(error);
                let interfaces = &mut wanted.guest.interfaces;
                // The guest would wait for it.
                interfaces.retain(|interface| interface.mac != mac);
            }
        }
        let refused = agent.set_network(&wanted.guest)?;
        if unattached.is_empty() && refused.is_empty() {
            self.record.guest_network = digest(&wanted.guest);
            self.save()?;
        }
        Ok(Applied {
            unattached,
            refused,
        })
    }

    /// Takes the leaving NICs away: first from the guest, whose driver must have let go before the VMM takes the device.
    /// `staying` is the guest's network without them; what it names of NICs that are yet to come fails for now.
    fn let_go(
        &mut self,
        control: &Control,
        mut staying: SetNetworkRequest,
        agent: &mut AgentClient,
    ) -> Result<(), crate::Error> {
        staying.wait_ms = 0;
        agent.set_network(&staying)?;
        while let Some(id) = self.record.network.leaving.last() {
            match control.detach(id) {
                // An attachment that failed half-way has left a NIC that the VMM never got.
                Err(error) if error.is_not_found() => {}
                other => other?,
            }
            self.record.network.leaving.pop();
            self.save()?;
        }
        Ok(())
    }

    /// Gives the VM a NIC, whose packets move as the sandbox's settings have it.
    fn attach_nic(&self, control: &Control, nic: NewNic) -> Result<(), crate::Error> {
        let NewNic { mut config, taps } = nic;
        let mut nics = self.record.network.nics.iter();
        let uplink = nics.rfind(|nic| nic.id() == config.id);
        let limits = uplink.map_or_else(Limits::default, |nic| {
            self.record.nics.limits_of(&nic.uplink.name)
        });
        (config.receive_limit, config.send_limit) = (limits.receive, limits.send);
        // The kernel's mover of packets knows no bounds.
        if self.record.nics.vhost == Vhost::Auto
            && limits.are_none()
            && let Some(vhosts) = open_vhost(taps.len()).map_err(SandboxError::Vhost)?
        {
            return Ok(control.attach_net_with_vhost(&config, &taps, &vhosts)?);
        }
        Ok(control.attach_net(&config, &taps)?)
    }

    /// The sandbox's network namespace; nothing if it is gone.
    pub fn open_netns(&self) -> Option<Netns> {
        netns_of(&self.record)
    }

    /// Gives the network namespace back as it was; with the namespace gone nothing is left to give.
    pub(super) fn undo_network(
        &mut self,
        netns: Option<Netns>,
        keep: Keep,
    ) -> Result<(), crate::Error> {
        let Some(netns) = netns else {
            self.record.network = NetworkState::default();
            return Ok(());
        };
        let store = self.store.clone();
        let mut record = self.record.clone();
        let mut persist = |state: &NetworkState| {
            record.network = state.clone();
            match (store.save_sandbox(&record), keep) {
                (Err(error), Keep::Record) => Err(io::Error::other(error)),
                (Ok(()), _) | (Err(_), Keep::Nothing) => Ok(()),
            }
        };
        let mut state = self.record.network.clone();
        let answer = network::undo(&netns, &mut state, &mut persist);
        self.record.network = state;
        Ok(answer?)
    }
}

/// The network namespace of a sandbox; nothing if it is gone.
pub(super) fn netns_of(record: &SandboxRecord) -> Option<Netns> {
    let of = |pid: i32| PathBuf::from(format!("/proc/{pid}/ns/net"));
    let processes = [record.netns_holder, record.vmm];
    let alive = processes
        .into_iter()
        .flatten()
        .filter(|process| process.is_alive());
    let candidates = alive
        .map(|process| of(process.pid))
        .chain(record.netns_path.clone());
    candidates
        .filter_map(|path| open_known(&path))
        .find(|netns| {
            let known = record.network.netns;
            // A path may have been given to another namespace since.
            known.is_none_or(|known| known == netns.id())
        })
}

/// What stands for a guest's network in the sandbox's record. Should two versions of hull make different ones of the
/// same network, the guest is given it once more.
fn digest(network: &SetNetworkRequest) -> Option<u64> {
    let bytes = network.write_to_bytes().ok()?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    Some(hasher.finish())
}

/// The servers that a Docker asks which does not say so in a container's resolver file, which is at `path`.
fn untold_upstream_servers(path: &Path) -> Vec<IpAddr> {
    let host_config = path.with_file_name("hostconfig.json");
    let [of_host, of_systemd] = HOST_RESOLVER_FILES.map(Path::new);
    type ServersIn = fn(&str) -> Vec<IpAddr>;
    let sources: [(&Path, ServersIn); 3] = [
        (&host_config, embedded_dns::requested_servers),
        (of_host, embedded_dns::name_servers),
        (of_systemd, embedded_dns::name_servers),
    ];
    let mut found = sources
        .into_iter()
        .map(|(file, servers_in)| match read_start(file) {
            Ok(text) => servers_in(&text),
            Err(error) => {
                tracing::debug!(path = %file.display(), %error, "upstream DNS servers");
                Vec::new()
            }
        });
    found
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

/// A resolver file, or its beginning: containers write to theirs.
fn read_start(path: &Path) -> io::Result<String> {
    // Not blocking: the path comes from a caller and may name a FIFO.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let mut bytes = Vec::new();
    file.take(RESOLVER_FILE_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn open_known(path: &Path) -> Option<Netns> {
    match Netns::open(path) {
        Ok(netns) => Some(netns),
        Err(error) if error.is_gone() => None,
        Err(error) => {
            tracing::warn!(error = %crate::error::chain(&error), "network namespace");
            None
        }
    }
}
