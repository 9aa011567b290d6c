//! The sandbox's network: finds its namespace from whatever process that looks, and brings the VM and the guest in
//! line with what [`crate::network`] says.

use std::io;
use std::path::{Path, PathBuf};

use hull_agent_protocol::agent::SetNetworkRequest;

use super::{Keep, Sandbox, SandboxError};
use crate::agent_client::AgentClient;
use crate::config::{Limits, Vhost};
use crate::network::{self, Model, Netns, NetworkState, NewNic, NotCarried, open_vhost};
use crate::vmm_process::Control;

/// How long the guest may take to see a NIC that was just attached, in milliseconds.
const NIC_LIMIT_MS: u32 = 20_000;

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
        for not_carried in &wanted.not_carried {
            match not_carried {
                NotCarried::Uplink { .. } => {
                    return Err(SandboxError::Uplink(not_carried.to_string()).into());
                }
                _ => tracing::warn!("{not_carried}"),
            }
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
            let_go(&control, &wanted.detach, staying, agent)?;
        }
        for nic in wanted.attach {
            self.attach_nic(&control, nic)?;
        }
        wanted.guest.wait_ms = NIC_LIMIT_MS;
        for failure in agent.set_network(&wanted.guest)? {
            tracing::warn!("the guest's network: {failure}");
        }
        Ok(())
    }

    /// Gives the VM a NIC, whose packets move as the sandbox's settings have it.
    fn attach_nic(&self, control: &Control, nic: NewNic) -> Result<(), crate::Error> {
        let NewNic { mut config, taps } = nic;
        let mut descriptors = taps;
        let mut nics = self.record.network.nics.iter();
        let uplink = nics.rfind(|nic| nic.id() == config.id);
        let limits = uplink.map_or_else(Limits::default, |nic| {
            self.record.nics.limits_of(&nic.uplink.name)
        });
        (config.receive_limit, config.send_limit) = (limits.receive, limits.send);
        // The kernel's mover of packets knows no bounds.
        if self.record.nics.vhost == Vhost::Auto
            && limits.are_none()
            && let Some(vhosts) = open_vhost(descriptors.len()).map_err(SandboxError::Vhost)?
        {
            config.vhost = true;
            descriptors.extend(vhosts);
        }
        Ok(control.attach_net(&config, &descriptors)?)
    }

    /// The sandbox's network namespace; nothing if it is gone.
    pub fn open_netns(&self) -> Option<Netns> {
        let of = |pid: i32| PathBuf::from(format!("/proc/{pid}/ns/net"));
        let processes = [Some(self.record.netns_holder), self.record.vmm];
        let alive = processes
            .into_iter()
            .flatten()
            .filter(|process| process.is_alive());
        let candidates = alive
            .map(|process| of(process.pid))
            .chain(self.record.netns_path.clone());
        candidates
            .filter_map(|path| open_known(&path))
            .find(|netns| {
                let known = self.record.network.netns;
                // A path may have been given to another namespace since.
                known.is_none_or(|known| known == netns.id())
            })
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

/// Takes NICs away: first from the guest, whose driver must have let go before the VMM takes the device. `staying` is the
/// guest's network without them; what it names of NICs that are yet to come fails for now.
fn let_go(
    control: &Control,
    ids: &[String],
    mut staying: SetNetworkRequest,
    agent: &mut AgentClient,
) -> Result<(), crate::Error> {
    staying.wait_ms = 0;
    agent.set_network(&staying)?;
    for id in ids {
        match control.detach(id) {
            // An attachment that failed half-way has left a NIC that the VMM never got.
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
    }
    Ok(())
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
