//! The network that the runtime asks for, checked: what is a text in the protocol is an address, a prefix or a name here.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hull_agent_protocol::agent;

/// Why a request is refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A text of the wrong shape.
    #[error("{text:?} is no {what}")]
    Text {
        /// What it should be.
        what: &'static str,
        /// What it is.
        text: String,
    },
    /// A number that is too large for its field.
    #[error("{number} is no {what}")]
    Number {
        /// What it should be.
        what: &'static str,
        /// What it is.
        number: u32,
    },
    /// Two interfaces with one MAC address or name.
    #[error("two interfaces are {0:?}")]
    Twice(String),
    /// Addresses of one object with different families.
    #[error("the route to {0} mixes IPv4 and IPv6")]
    Mixed(Prefix),
}

/// An address with a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// The length in bits.
    pub length: u8,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Mac(pub [u8; 6]);

impl Mac {
    /// The IPv6 address that the kernel gives every link by its MAC address (RFC 4291, appendix A).
    pub(super) fn link_local(self) -> IpAddr {
        let [a, b, c, d, e, f] = self.0;
        let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(interface)).into()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An interface's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub prefix: Prefix,
    pub broadcast: Option<Ipv4Addr>,
    pub flags: u32,
    pub scope: u8,
}

#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub mac: Mac,
    pub name: String,
    pub mtu: u32,
    pub addresses: Vec<Address>,
    pub up: bool,
    pub disable_ipv6: bool,
    pub accept_ra: bool,
    pub autoconf: bool,
    pub arp: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub destination: Prefix,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub interface: Option<String>,
    pub table: u32,
    pub scope: u8,
    pub protocol: u8,
    pub kind: u8,
    pub metric: u32,
    pub mtu: u32,
    pub flags: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Neighbour {
    pub address: IpAddr,
    pub mac: Mac,
    pub interface: String,
    pub state: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    pub ipv6: bool,
    pub priority: u32,
    pub table: u32,
    pub source: Option<Prefix>,
    pub destination: Option<Prefix>,
    pub fwmark: u32,
    pub fwmask: u32,
    pub input_interface: Option<String>,
    pub output_interface: Option<String>,
    pub action: u8,
}

/// All of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub interfaces: Vec<Interface>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
    pub rules: Vec<Rule>,
}

impl Wanted {
    /// Leaves out the IPv6 routes and neighbours of interfaces that have no IPv6.
    pub(super) fn without_ipv6_on(mut self, interfaces: &HashSet<String>) -> Self {
        let lacks = |address: IpAddr, name: Option<&String>| {
            address.is_ipv6() && name.is_some_and(|name| interfaces.contains(name))
        };
        self.routes
            .retain(|route| !lacks(route.destination.address, route.interface.as_ref()));
        self.neighbours
            .retain(|neighbour| !lacks(neighbour.address, Some(&neighbour.interface)));
        self
    }

    /// Adds what `before` has beyond this: after a failure it may still be there, and is to be removed later.
    pub(super) fn keep_in_mind(&mut self, before: Self) {
        for mut interface in before.interfaces {
            let known = self.interfaces.iter_mut();
            match known.into_iter().find(|known| known.mac == interface.mac) {
                Some(known) => {
                    let wanted = |one: &Address| {
                        let mut addresses = known.addresses.iter();
                        addresses.any(|known| known.prefix == one.prefix)
                    };
                    interface.addresses.retain(|one| !wanted(one));
                    known.addresses.append(&mut interface.addresses);
                }
                None => self.interfaces.push(interface),
            }
        }
        extend(&mut self.routes, before.routes);
        extend(&mut self.neighbours, before.neighbours);
        extend(&mut self.rules, before.rules);
    }

    pub(super) fn of(request: &agent::SetNetworkRequest) -> Result<Self, RequestError> {
        let mut wanted = Self::default();
        let mut seen = HashSet::new();
        for one in &request.interfaces {
            let interface = interface(one)?;
            for key in [interface.mac.to_string(), interface.name.clone()] {
                if !seen.insert(key.clone()) {
                    return Err(RequestError::Twice(key));
                }
            }
            wanted.interfaces.push(interface);
        }
        for one in &request.routes {
            wanted.routes.push(route(one)?);
        }
        for one in &request.neighbours {
            wanted.neighbours.push(Neighbour {
                address: address(&one.address)?,
                mac: mac(&one.mac)?,
                interface: name(&one.interface)?,
                state: number("neighbour state", one.state)?,
            });
        }
        for one in &request.rules {
            wanted.rules.push(rule(one)?);
        }
        Ok(wanted)
    }
}

/// Appends what is not there yet.
fn extend<T: PartialEq>(known: &mut Vec<T>, others: Vec<T>) {
    for other in others {
        if !known.contains(&other) {
            known.push(other);
        }
    }
}

fn interface(one: &agent::Interface) -> Result<Interface, RequestError> {
    let addresses = one.addresses.iter().map(|one| {
        let prefix = prefix(&one.cidr)?;
        let broadcast = match one.broadcast.as_str() {
            "" => None,
            text => match address(text)? {
                IpAddr::V4(broadcast) if prefix.address.is_ipv4() => Some(broadcast),
                _ => {
                    return Err(RequestError::Text {
                        what: "broadcast address of an IPv4 address",
                        text: text.to_owned(),
                    });
                }
            },
        };
        Ok(Address {
            prefix,
            broadcast,
            flags: one.flags,
            scope: number("scope", one.scope)?,
        })
    });
    Ok(Interface {
        mac: mac(&one.mac)?,
        name: name(&one.name)?,
        mtu: one.mtu,
        addresses: addresses.collect::<Result<_, _>>()?,
        up: one.up,
        disable_ipv6: one.disable_ipv6,
        accept_ra: !one.ignore_router_advertisements,
        autoconf: !one.no_address_autoconfiguration,
        arp: !one.no_arp,
    })
}

fn route(one: &agent::Route) -> Result<Route, RequestError> {
    let route = Route {
        destination: prefix(&one.destination)?,
        gateway: optional(&one.gateway, address)?,
        source: optional(&one.source, address)?,
        interface: optional(&one.interface, name)?,
        table: one.table,
        scope: number("scope", one.scope)?,
        protocol: number("routing protocol", one.protocol)?,
        kind: number("kind of route", one.kind)?,
        metric: one.metric,
        mtu: one.mtu,
        flags: one.flags,
    };
    let v4 = route.destination.address.is_ipv4();
    // An IPv4 route may go through an IPv6 gateway (RTA_VIA).
    let gateway_fits = route.gateway.is_none_or(|gateway| v4 || gateway.is_ipv6());
    if !gateway_fits || route.source.is_some_and(|source| source.is_ipv4() != v4) {
        return Err(RequestError::Mixed(route.destination));
    }
    Ok(route)
}

fn rule(one: &agent::Rule) -> Result<Rule, RequestError> {
    let of_family = |text: &str| {
        let prefix = prefix(text)?;
        if prefix.address.is_ipv6() == one.ipv6 {
            Ok(prefix)
        } else {
            Err(RequestError::Text {
                what: "prefix of the rule's family",
                text: text.to_owned(),
            })
        }
    };
    Ok(Rule {
        ipv6: one.ipv6,
        priority: one.priority,
        table: one.table,
        source: optional(&one.source, of_family)?,
        destination: optional(&one.destination, of_family)?,
        fwmark: one.fwmark,
        fwmask: one.fwmask,
        input_interface: optional(&one.input_interface, name)?,
        output_interface: optional(&one.output_interface, name)?,
        action: number("rule action", one.action)?,
    })
}

fn optional<T>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, RequestError>,
) -> Result<Option<T>, RequestError> {
    (!text.is_empty()).then(|| parse(text)).transpose()
}

fn number<T: TryFrom<u32>>(what: &'static str, number: u32) -> Result<T, RequestError> {
    T::try_from(number).map_err(|_| RequestError::Number { what, number })
}

fn address(text: &str) -> Result<IpAddr, RequestError> {
    text.parse().map_err(|_| RequestError::Text {
        what: "IP address",
        text: text.to_owned(),
    })
}

fn prefix(text: &str) -> Result<Prefix, RequestError> {
    let parsed = text.split_once('/').and_then(|(address, length)| {
        let address: IpAddr = address.parse().ok()?;
        let length: u8 = length.parse().ok()?;
        let most = match address {
            IpAddr::V4(_) => Ipv4Addr::BITS,
            IpAddr::V6(_) => Ipv6Addr::BITS,
        };
        (u32::from(length) <= most).then_some(Prefix { address, length })
    });
    parsed.ok_or_else(|| RequestError::Text {
        what: "IP prefix",
        text: text.to_owned(),
    })
}

fn mac(text: &str) -> Result<Mac, RequestError> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| (byte.len() == 2).then(|| u8::from_str_radix(byte, 16).ok())?)
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map(Mac)
        .ok_or_else(|| RequestError::Text {
            what: "MAC address",
            text: text.to_owned(),
        })
}

/// A name that the kernel would take, and a file name below `/proc/sys/net`.
fn name(text: &str) -> Result<String, RequestError> {
    let bad = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0;
    if text.is_empty()
        || text.len() >= libc::IFNAMSIZ
        || matches!(text, "." | ".." | "all" | "default")
        || text.bytes().any(bad)
    {
        return Err(RequestError::Text {
            what: "interface name",
            text: text.to_owned(),
        });
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_another_shape_are_refused() {
        for text in ["", "/", "a/b", "sixteen-letters-", "..", "all", "a b"] {
            assert!(name(text).is_err(), "{text:?}");
        }
        assert_eq!(name("eth0.100").unwrap(), "eth0.100");
        for text in [
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "2:42:ac:11:00:02",
            "zz:42:ac:11:00:02",
        ] {
            assert!(mac(text).is_err(), "{text:?}");
        }
        assert_eq!(
            mac("02:42:AC:11:00:02").unwrap().to_string(),
            "02:42:ac:11:00:02"
        );
        for text in ["10.0.0.1", "10.0.0.1/33", "fd00::/129", "10.0.0/8", "/8"] {
            assert!(prefix(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn one_mac_or_name_for_two_interfaces_is_refused() {
        let interface = |mac: &str, name: &str| agent::Interface {
            mac: mac.into(),
            name: name.into(),
            ..Default::default()
        };
        let request = |second| agent::SetNetworkRequest {
            interfaces: vec![interface("02:00:00:00:00:01", "eth0"), second],
            ..Default::default()
        };
        assert!(Wanted::of(&request(interface("02:00:00:00:00:02", "eth1"))).is_ok());
        assert!(Wanted::of(&request(interface("02:00:00:00:00:01", "eth1"))).is_err());
        assert!(Wanted::of(&request(interface("02:00:00:00:00:02", "eth0"))).is_err());
    }
}
