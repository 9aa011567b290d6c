//! What has passed through taps, as their namespace counts it.

use std::collections::HashMap;

use hull_vmm_protocol::control::{NicTraffic, TrafficCounters};

use super::error::Error;
use super::netns::Netns;
use super::sysctl;

/// The counters of all interfaces of the namespace that the thread is in.
const COUNTERS: &str = "/proc/thread-self/net/dev";

/// What has passed through the interfaces of a namespace, by name, seen from the other end: what a tap has sent its
/// guest has received.
///
/// # Errors
/// The namespace cannot be entered, or its counters not be read.
pub fn tap_traffic(netns: &Netns) -> Result<HashMap<String, NicTraffic>, Error> {
    let text = netns.run(|| sysctl::read(COUNTERS.as_ref()))??;
    Ok(text.unwrap_or_default().lines().filter_map(parse).collect())
}

/// Parses a line of the table: the name, then eight numbers for receiving and eight for sending, of which the first
/// are bytes, packets, errors and drops.
fn parse(line: &str) -> Option<(String, NicTraffic)> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_ascii_whitespace()
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let counters = |first: usize| {
        Some(TrafficCounters {
            bytes: *numbers.get(first)?,
            packets: *numbers.get(first + 1)?,
            dropped: *numbers.get(first + 3)?,
        })
    };
    let traffic = NicTraffic {
        received: counters(8)?,
        sent: counters(0)?,
    };
    Some((name.trim().to_owned(), traffic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_sends_what_its_guest_receives() {
        let line = "hull-tap0: 100    2    0    3    0     0          0         0      4000   50    0    6    0     0       0          0";
        let (name, traffic) = parse(line).unwrap();
        assert_eq!(name, "hull-tap0");
        let counters = |packets, bytes, dropped| TrafficCounters {
            packets,
            bytes,
            dropped,
        };
        assert_eq!(traffic.received, counters(50, 4000, 6));
        assert_eq!(traffic.sent, counters(2, 100, 3));
        for other in [
            "Inter-|   Receive                                                |  Transmit",
            " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop",
            "",
            "lo: 1 2 3",
            "lo: 1 2 3 4 5 6 7 8 nine 10 11 12 13 14 15 16",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_new_namespace_has_counted_nothing_but_its_own() {
        let traffic = tap_traffic(&Netns::create().unwrap()).unwrap();
        assert!(traffic.contains_key("lo"), "{traffic:?}");
    }
}
