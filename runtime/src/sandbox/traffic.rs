//! What has passed through a sandbox's NICs. Where the VMM moves the packets it counts them; where the host's kernel
//! does (vhost-net), the tap's counters are the NIC's.

use std::collections::HashMap;
use std::time::Duration;

use hull_vmm_protocol::control::NicTraffic;

use super::network::netns_of;
use crate::container::ContainerId;
use crate::network::tap_traffic;
use crate::store::Store;
use crate::vmm_process::Control;

/// What has passed through each NIC of a sandbox that runs, with the name of its interface, as the guest sees it. Takes
/// no lock: NICs that come or go meanwhile are missing. The VMM may take `limit` to answer.
///
/// # Errors
/// The sandbox is gone, or its VMM or network namespace is.
pub fn traffic(
    store: &Store,
    id: &ContainerId,
    limit: Duration,
) -> Result<Vec<(String, NicTraffic)>, crate::Error> {
    let record = store.sandbox(id)?;
    let control = Control::connect_within(&store.sandbox_directory(id), limit)?;
    let counted = control.net_counters()?;
    let by_id: HashMap<&str, Option<NicTraffic>> = counted
        .iter()
        .map(|nic| (nic.id.as_str(), nic.passed))
        .collect();
    let of_taps = match netns_of(&record) {
        Some(netns) if by_id.values().any(Option::is_none) => tap_traffic(&netns)?,
        _ => HashMap::new(),
    };
    let nics = record.network.nics.iter();
    Ok(nics
        .filter_map(|nic| {
            let counted = *by_id.get(nic.id().as_str())?;
            let passed = counted.or_else(|| of_taps.get(&nic.tap_name()).copied())?;
            Some((nic.uplink.name.clone(), passed))
        })
        .collect())
}
