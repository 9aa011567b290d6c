//! Permanent neighbours.

use std::collections::{HashMap, HashSet};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error_text::with_causes;

use super::netlink::Netlink;
use super::wanted::Neighbour;

/// Removes the neighbours of `before` that are not wanted any more, and adds the wanted ones.
pub(super) async fn replace(
    netlink: &Netlink,
    before: &[Neighbour],
    wanted: &[Neighbour],
    indices: &HashMap<String, u32>,
    failures: &mut Vec<String>,
) {
    let kept: HashSet<_> = wanted
        .iter()
        .map(|one| (one.address, &one.interface))
        .collect();
    for neighbour in before {
        if kept.contains(&(neighbour.address, &neighbour.interface)) {
            continue;
        }
        let Some(message) = message(neighbour, indices) else {
            continue;
        };
        match netlink
            .change(RouteNetlinkMessage::DelNeighbour(message), 0)
            .await
        {
            Err(error)
                if !matches!(
                    error.errno(),
                    Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)
                ) =>
            {
                failures.push(format!(
                    "remove neighbour {}: {}",
                    neighbour.address,
                    with_causes(&error)
                ));
            }
            _ => {}
        }
    }
    for neighbour in wanted {
        let Some(message) = message(neighbour, indices) else {
            failures.push(format!(
                "add neighbour {}: there is no interface {}",
                neighbour.address, neighbour.interface
            ));
            continue;
        };
        let message = RouteNetlinkMessage::NewNeighbour(message);
        if let Err(error) = netlink.change(message, NLM_F_CREATE | NLM_F_REPLACE).await {
            failures.push(format!(
                "add neighbour {}: {}",
                neighbour.address,
                with_causes(&error)
            ));
        }
    }
}

fn message(neighbour: &Neighbour, indices: &HashMap<String, u32>) -> Option<NeighbourMessage> {
    let mut message = NeighbourMessage::default();
    message.header.family = if neighbour.address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    message.header.ifindex = *indices.get(&neighbour.interface)?;
    message.header.state = neighbour.state.into();
    message.attributes = vec![
        NeighbourAttribute::Destination(neighbour.address.into()),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
    ];
    Some(message)
}
