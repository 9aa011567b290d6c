//! The control calls: one [`Request`] and one [`Response`] at a time on a connection, each a packet of JSON of at
//! most [`MAX_PACKET`] bytes, with descriptors beside it where a request says so.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{BlkConfig, FsConfig, NetConfig};

/// The largest packet, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;
/// The most descriptors that come with one packet.
pub const MAX_FDS: usize = 32;

/// What a VMM can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Adds a virtio-net device. Descriptors: its tap, one for each queue pair; with [`NetConfig::vhost`] then as many
    /// of `/dev/vhost-net`.
    AttachNet(NetConfig),
    /// Adds a virtio-fs device.
    AttachFs(FsConfig),
    /// Adds a virtio-blk device. Descriptor: its disk, which is open for reading, and for writing unless
    /// [`BlkConfig::readonly`] is set.
    AttachBlk(BlkConfig),
    /// Takes a device away; the guest's driver must have let go of it.
    Detach {
        /// The device's id.
        id: String,
    },
    /// Asks the guest to have so much memory: at least what it started with, at most what it can grow to. The first
    /// such call adds the memory device, for which the guest must look; [`VmStatus::memory_mib`] tells how far it is.
    ResizeMemory {
        /// In MiB.
        memory_mib: u32,
    },
    /// Asks what has passed through the NICs.
    NetCounters,
    /// Asks what the disks, the file systems and the socket device have moved.
    DeviceCounters,
    /// Asks what KVM has counted of the vCPUs.
    VcpuCounters,
    /// Asks how the machine is.
    Status,
    /// Asks for the last bytes of the console, at most as many, as lossy UTF-8.
    ConsoleTail {
        /// At most 32 KiB are given.
        max_bytes: u32,
    },
    /// Ends the machine and the VMM.
    Stop,
}

/// What a VMM answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Response {
    /// The device is on the bus.
    Attached {
        /// Where the guest finds it: `0000:00:04.0`.
        pci_address: String,
    },
    /// Done, and there is nothing to say.
    Done,
    /// The answer to [`Request::NetCounters`].
    NetCounters {
        /// All NICs, in order of their PCI address.
        nics: Vec<NicCounters>,
    },
    /// The answer to [`Request::DeviceCounters`].
    DeviceCounters {
        /// In order of their PCI address.
        devices: Vec<DeviceCounters>,
    },
    /// The answer to [`Request::VcpuCounters`].
    VcpuCounters {
        /// Events since the start over all vCPUs, by KVM's names (`exits`, `halt_exits`); empty where KVM does not tell.
        counters: BTreeMap<String, u64>,
    },
    /// The answer to [`Request::Status`].
    Status(VmStatus),
    /// The answer to [`Request::ConsoleTail`].
    ConsoleTail {
        /// The console's last bytes.
        text: String,
    },
    /// The request was refused or failed; the machine goes on as it was.
    Failed(Failure),
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// For callers to match.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

/// The kinds of [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The request is malformed, or a value in it is out of range.
    Invalid,
    /// There is a device with that id already.
    Exists,
    /// There is no device with that id.
    NotFound,
    /// No PCI slot, interrupt or address range is left.
    Exhausted,
    /// The host refused something that the device needs.
    Host,
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmStatus {
    /// The VMM's pid as it sees it itself.
    pub pid: u32,
    /// vCPU exits to user space since the start, over all vCPUs.
    pub exits: u64,
    /// The ids of the attached devices, in order of their PCI address.
    pub devices: Vec<String>,
    /// The guest's memory in MiB: what it started with, and what it has taken since.
    pub memory_mib: u32,
}

/// What has passed through one NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicCounters {
    /// The device's id.
    pub id: String,
    /// Pairs of queues that the driver can use.
    pub queue_pairs: u16,
    /// None if the host's kernel moves the packets (vhost-net), which the VMM does not see: the counters of the tap,
    /// with receiving and sending exchanged, are the NIC's then.
    pub passed: Option<NicTraffic>,
}

/// What a device that is no NIC has moved since it was attached, also across resets by its driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceCounters {
    /// The device's id.
    pub id: String,
    /// What it is.
    pub kind: DeviceKind,
    /// What was read from the disk, replies of the file system, packets of the host.
    pub to_guest: Moved,
    /// What was written to the disk, requests to the file system, packets of the guest.
    pub from_guest: Moved,
    /// What the device refused, or the host failed at.
    pub failed: u64,
}

/// The kinds of devices that move data by requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// virtio-blk.
    Disk,
    /// virtio-fs.
    FileSystem,
    /// vsock.
    Socket,
}

/// Counters of one direction. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moved {
    /// Requests, replies or packets.
    pub operations: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What the VMM has moved since a NIC was attached, also across resets by its driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicTraffic {
    /// What the guest received.
    pub received: TrafficCounters,
    /// What the guest sent.
    pub sent: TrafficCounters,
}

/// Counters of one direction. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrafficCounters {
    /// Frames that passed. One that segmentation offload has left whole counts once.
    pub packets: u64,
    /// Their bytes, from the Ethernet header on.
    pub bytes: u64,
    /// Frames that were lost: malformed, too large for the other side, or refused by it.
    pub dropped: u64,
}
