//! Links as the kernel describes them.

use netlink_packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage,
};

use super::mac::MacAddress;

/// What hull looks at of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Of Ethernet links only.
    pub(super) mac: Option<MacAddress>,
    pub(super) mtu: u32,
    pub(super) flags: LinkFlags,
    pub(super) ethernet: bool,
    /// None for a physical NIC.
    pub(super) kind: Option<InfoKind>,
    /// Of ipvlans only.
    pub(super) ipvlan_mode: Option<IpVlanMode>,
    /// The index of the bridge, bond or VRF that it belongs to.
    pub(super) master: Option<u32>,
    /// The index of the link of the same namespace that carries its frames, as a VLAN's parent does.
    pub(super) lower: Option<u32>,
}

impl Link {
    /// Nothing for a message without name, which no kernel sends.
    pub(super) fn parse(message: &LinkMessage) -> Option<Self> {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            flags: message.header.flags,
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            kind: None,
            ipvlan_mode: None,
            master: None,
            lower: None,
        };
        let mut related = None;
        let mut related_is_elsewhere = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) if link.ethernet => {
                    link.mac = bytes.as_slice().try_into().ok().map(MacAddress);
                }
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::Link(index) => related = Some(*index),
                LinkAttribute::LinkNetNsId(_) => related_is_elsewhere = true,
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link.inform(info)),
                _ => {}
            }
        }
        // Of other kinds it is something else: a veth's peer, for one.
        link.lower = related.filter(|_| link.is_stacked() && !related_is_elsewhere);
        (!link.name.is_empty()).then_some(link)
    }

    fn inform(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.clone()),
            LinkInfo::Data(InfoData::IpVlan(values)) => {
                self.ipvlan_mode = values.iter().find_map(|value| match value {
                    InfoIpVlan::Mode(mode) => Some(*mode),
                    _ => None,
                });
            }
            _ => {}
        }
    }

    /// Whether its kind sends and receives through another link.
    fn is_stacked(&self) -> bool {
        use InfoKind::{IpVlan, IpVtap, MacVlan, MacVtap, Vlan};
        matches!(self.kind, Some(Vlan | MacVlan | MacVtap | IpVlan | IpVtap))
    }

    /// Whether it takes the frames of every multicast group because somebody has said so.
    pub(super) fn takes_all_groups(&self) -> bool {
        self.flags.contains(LinkFlags::Allmulti)
    }

    pub(super) fn is_up(&self) -> bool {
        self.flags.contains(LinkFlags::Up)
    }

    pub(super) fn does_arp(&self) -> bool {
        !self.flags.contains(LinkFlags::Noarp)
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.flags.contains(LinkFlags::Loopback)
    }

    pub(super) fn is(&self, kind: &InfoKind) -> bool {
        self.kind.as_ref() == Some(kind)
    }
}

/// All links of a namespace at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Links(pub(super) Vec<Link>);

impl Links {
    pub(super) fn named(&self, name: &str) -> Option<&Link> {
        self.0.iter().find(|link| link.name == name)
    }

    pub(super) fn indexed(&self, index: u32) -> Option<&Link> {
        self.0.iter().find(|link| link.index == index)
    }
}
