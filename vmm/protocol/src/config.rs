//! The machine that one `hull-vmm` process makes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The file that `hull-vmm --config FILE` reads, as JSON. All paths are absolute, and are opened before the VMM
/// enters its jail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// vCPUs that run from the start: 1 to 32.
    pub vcpus: u8,
    /// vCPUs that the MP table lists, `vcpus` to 32. The guest holds the rest back (`maxcpus=`) until its agent
    /// brings them online.
    pub max_vcpus: u8,
    /// Guest memory in MiB, at least 64.
    pub memory_mib: u32,
    /// Up to how much it can grow by [`crate::control::Request::ResizeMemory`], `memory_mib` or more.
    pub max_memory_mib: u32,
    /// A PVH ELF (`vmlinux`) or a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM file system, in any form the kernel takes.
    pub initramfs: PathBuf,
    /// Appended to the kernel command line that the VMM makes itself.
    #[serde(default)]
    pub cmdline: String,
    /// An 8250 serial port with `earlycon`, whose output goes into the console log as well.
    #[serde(default)]
    pub early_serial: bool,
    /// The vsock device.
    pub vsock: VsockConfig,
    /// Where the console's output is kept. The VMM truncates it, and never lets it grow beyond 1 MiB: the guest
    /// writes it.
    pub console_log: PathBuf,
    /// The Unix socket (`SOCK_SEQPACKET`) for control calls, made by the VMM.
    pub control_socket: PathBuf,
    /// Where [`crate::outcome::Outcome`] is written when the machine has ended. The VMM makes the file empty at its
    /// start, so an empty one after its end says that it was killed.
    pub outcome: PathBuf,
    /// Enter a mount namespace with a root of its own: a tmpfs that holds an empty directory [`JAIL_SHARE`] and
    /// nothing of the host. Without it the VMM stays where it is (for work by hand, and for tests).
    pub jail: bool,
}

/// The directory of the jail in which the runtime mounts what the guest shall see.
pub const JAIL_SHARE: &str = "/shared";

/// The vsock device and its Unix sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// Made by the VMM. Hosts connect here and write `CONNECT <port>\n`; the answer is `OK <host port>\n`. A
    /// connection that the guest opens to port P of the host is made to `<socket>_P`.
    pub socket: PathBuf,
}

/// A virtio-net device. Its tap (one descriptor for each queue pair) comes with the call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Names the device in later calls.
    pub id: String,
    /// The guest's MAC address, `02:42:ac:11:00:02`.
    pub mac: String,
    /// Told to the driver (VIRTIO_NET_F_MTU).
    pub mtu: u16,
    /// The host's kernel moves the packets (vhost-net). After the descriptors of the tap come as many of
    /// `/dev/vhost-net`, each opened for this device alone.
    #[serde(default)]
    pub vhost: bool,
    /// A bound on what the guest receives. The VMM moves the packets then: not with `vhost`.
    #[serde(default)]
    pub receive_limit: Option<RateLimit>,
    /// A bound on what the guest sends; likewise.
    #[serde(default)]
    pub send_limit: Option<RateLimit>,
}

impl NetConfig {
    /// A device whose packets the VMM moves, as fast as it can.
    #[must_use]
    pub fn new(id: String, mac: String, mtu: u16) -> Self {
        Self {
            id,
            mac,
            mtu,
            vhost: false,
            receive_limit: None,
            send_limit: None,
        }
    }
}

/// A token bucket, in bytes of Ethernet frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// How fast it fills, at least 1.
    pub bytes_per_second: u64,
    /// How much it holds, at least 1: what may pass at once after a pause.
    pub burst_bytes: u64,
}

/// A virtio-blk device. Its disk comes with the call: a descriptor of a block device or of a regular file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlkConfig {
    /// Names the device in later calls.
    pub id: String,
    /// The disk's serial number in the guest, at most 20 bytes.
    pub serial: String,
    /// The guest is kept from writing.
    pub readonly: bool,
    /// Queues, 1 to 8: requests of different queues are done at the same time.
    pub queues: u16,
}

/// A virtio-fs device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// Names the device in later calls.
    pub id: String,
    /// The mount tag, 1 to 36 bytes.
    pub tag: String,
    /// The directory that is shared, as the VMM sees it (inside its jail).
    pub directory: PathBuf,
}
