//! Policy rules. The kernel's own three (priorities 0, 32766 and 32767) are never touched.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error_text::with_causes;

use super::netlink::Netlink;
use super::wanted::Rule;

/// RT_TABLE_LOCAL, RT_TABLE_MAIN and RT_TABLE_DEFAULT, by the priorities of their rules.
const KERNELS: [(u32, u32); 3] = [(0, 255), (32766, 254), (32767, 253)];

/// Removes the rules of `before` that are not wanted any more, and adds the wanted ones.
pub(super) async fn replace(
    netlink: &Netlink,
    before: &[Rule],
    wanted: &[Rule],
    failures: &mut Vec<String>,
) {
    let ours = |rule: &&Rule| !KERNELS.contains(&(rule.priority, rule.table));
    for rule in before.iter().filter(ours) {
        if wanted.contains(rule) {
            continue;
        }
        match netlink
            .change(RouteNetlinkMessage::DelRule(message(rule)), 0)
            .await
        {
            Err(error) if error.errno() != Some(libc::ENOENT) => {
                failures.push(format!(
                    "remove rule {}: {}",
                    rule.priority,
                    with_causes(&error)
                ));
            }
            _ => {}
        }
    }
    for rule in wanted.iter().filter(ours) {
        let message = RouteNetlinkMessage::NewRule(message(rule));
        match netlink.change(message, NLM_F_CREATE | NLM_F_EXCL).await {
            Err(error) if error.errno() != Some(libc::EEXIST) => {
                failures.push(format!(
                    "add rule {}: {}",
                    rule.priority,
                    with_causes(&error)
                ));
            }
            _ => {}
        }
    }
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.ipv6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    message.header.action = rule.action.into();
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.priority));
    if rule.table > 0 {
        attributes.push(RuleAttribute::Table(rule.table));
    }
    if let Some(source) = rule.source {
        message.header.src_len = source.length;
        attributes.push(RuleAttribute::Source(source.address));
    }
    if let Some(destination) = rule.destination {
        message.header.dst_len = destination.length;
        attributes.push(RuleAttribute::Destination(destination.address));
    }
    if rule.fwmark > 0 || rule.fwmask > 0 {
        attributes.push(RuleAttribute::FwMark(rule.fwmark));
    }
    if rule.fwmask > 0 {
        attributes.push(RuleAttribute::FwMask(rule.fwmask));
    }
    let input = rule.input_interface.clone().map(RuleAttribute::Iifname);
    let output = rule.output_interface.clone().map(RuleAttribute::Oifname);
    attributes.extend(input.into_iter().chain(output));
    message
}
