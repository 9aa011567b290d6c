//! What is kept of a sandbox's network between commands, enough to undo it from a process that knows nothing else.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::mac::MacAddress;
use super::netns::NetnsId;

/// How an uplink is wired to its tap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// A bridge with tap and uplink as its ports. The uplink's MAC address moves to the guest. Wanted of a sandbox, it
    /// is for uplinks that it suits; the others are wired by [`Model::Tc`].
    #[default]
    Bridge,
    /// Packets are redirected from the uplink's ingress to the tap and back; the uplink stays as it is.
    Tc,
    /// No uplink is taken, whatever the namespace holds: the guest has its loopback interface only.
    None,
}

impl fmt::Display for Model {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Bridge => "bridge",
            Self::Tc => "tc",
            Self::None => "none",
        })
    }
}

/// The network of one sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkState {
    /// The namespace that the rest is about; none before the first [`super::reconcile()`].
    #[serde(default)]
    pub netns: Option<NetnsId>,
    /// Values of the namespace's sysctls before hull changed them.
    #[serde(default)]
    pub sysctls: Vec<SavedSysctl>,
    /// The NICs, in the order in which they were made.
    #[serde(default)]
    pub nics: Vec<NicState>,
    /// Ids of NICs that are no longer wired, and that the VMM may still have. Whoever takes one from the VMM, or finds
    /// that it has none, takes it out of here.
    #[serde(default)]
    pub leaving: Vec<String>,
}

/// A sysctl as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSysctl {
    /// The file below `/proc/sys`.
    pub path: PathBuf,
    /// What it held.
    pub value: String,
}

/// One NIC: an uplink of the namespace and what stands between it and the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicState {
    /// Its number in the namespace, which its names and the uplink's MAC address come from.
    pub index: u16,
    /// How it is wired.
    pub model: Model,
    /// The uplink as it was found.
    pub uplink: UplinkState,
    /// The MTU that the VM's device was made with, the largest that the guest can set.
    pub mtu: u16,
    /// Queue pairs of the tap.
    pub queue_pairs: u16,
    /// Permanent neighbours of the uplink that a change of its MAC address takes away, until they are back.
    #[serde(default)]
    pub neighbours: Vec<SavedNeighbour>,
}

/// An uplink as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UplinkState {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its index in the namespace.
    pub ifindex: u32,
    /// Its MAC address: the guest's now.
    pub mac: MacAddress,
    /// Whether it did ARP.
    pub arp: bool,
    /// Whether it took the frames of every multicast group, where the model makes it do so.
    #[serde(default)]
    pub all_groups: Option<bool>,
    /// Its IPv6 settings that the model changes.
    #[serde(default)]
    pub ipv6: Vec<SavedSetting>,
}

/// A value below `/proc/sys/net/ipv6/conf/<interface>` as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSetting {
    /// The file's name.
    pub name: String,
    /// What it held.
    pub value: String,
}

/// A permanent neighbour of an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedNeighbour {
    /// Its IP address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: MacAddress,
}

impl NicState {
    /// The id of the VM's device: `net<index>`.
    pub fn id(&self) -> String {
        format!("{ID_PREFIX}{}", self.index)
    }

    /// The name of the tap: `hull-tap<index>`, at most 13 bytes.
    pub fn tap_name(&self) -> String {
        format!("{TAP_PREFIX}{}", self.index)
    }

    /// The name of the bridge: `hull-br<index>`, at most 12 bytes.
    pub fn bridge_name(&self) -> String {
        format!("{BRIDGE_PREFIX}{}", self.index)
    }

    /// The MAC address that the uplink has while the guest has the uplink's own.
    pub fn assigned_mac(&self) -> MacAddress {
        let [high, low] = self.index.to_be_bytes();
        MacAddress([0x02, 0x00, 0xca, 0xfe, high, low])
    }
}

const ID_PREFIX: &str = "net";
const TAP_PREFIX: &str = "hull-tap";
const BRIDGE_PREFIX: &str = "hull-br";

/// The index in the name of a tap or bridge of hull's; none for a name of anyone else's.
pub(super) fn index_of_own_name(name: &str) -> Option<u16> {
    let digits = name
        .strip_prefix(TAP_PREFIX)
        .or_else(|| name.strip_prefix(BRIDGE_PREFIX))?;
    index_of_digits(digits)
}

/// The index in a NIC's id.
pub(super) fn index_of_id(id: &str) -> Option<u16> {
    index_of_digits(id.strip_prefix(ID_PREFIX)?)
}

fn index_of_digits(digits: &str) -> Option<u16> {
    let index: u16 = digits.parse().ok()?;
    (index.to_string() == digits).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(index: u16) -> NicState {
        NicState {
            index,
            model: Model::Bridge,
            uplink: UplinkState {
                name: "eth0".into(),
                ifindex: 2,
                mac: MacAddress([2, 0x42, 0xac, 0x11, 0, 2]),
                arp: true,
                all_groups: None,
                ipv6: vec![],
            },
            mtu: 1500,
            queue_pairs: 1,
            neighbours: vec![],
        }
    }

    #[test]
    fn names_and_addresses_come_from_the_index_and_fit() {
        let last = nic(u16::MAX);
        assert_eq!(last.tap_name(), "hull-tap65535");
        assert!(last.tap_name().len() <= 15 && last.bridge_name().len() <= 15);
        assert_eq!(last.assigned_mac().to_string(), "02:00:ca:fe:ff:ff");
        assert_eq!(nic(0x102).assigned_mac().to_string(), "02:00:ca:fe:01:02");
        assert_eq!(index_of_own_name("hull-br65535"), Some(u16::MAX));
        for name in [
            "hull-br65536",
            "hull-tap",
            "hull-tap01",
            "hull-tap+1",
            "br0",
        ] {
            assert_eq!(index_of_own_name(name), None, "{name}");
        }
    }

    #[test]
    fn the_state_survives_being_written() {
        let state = NetworkState {
            netns: Some(NetnsId {
                device: 4,
                inode: 4_026_532_000,
            }),
            sysctls: vec![SavedSysctl {
                path: "/proc/sys/net/bridge/bridge-nf-call-iptables".into(),
                value: "1".into(),
            }],
            nics: vec![nic(0), nic(1)],
            leaving: vec!["net2".into()],
        };
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<NetworkState>(&text).unwrap(), state);
        assert_eq!(
            serde_json::from_str::<NetworkState>("{}").unwrap(),
            NetworkState::default()
        );
    }
}
