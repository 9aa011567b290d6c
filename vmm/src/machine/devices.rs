//! The machine's devices behind PCI, by their ids: attached before the boot and while the machine runs, by the same
//! calls.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hull_vmm_protocol::config::{BlkConfig, FsConfig, NetConfig};
use hull_vmm_protocol::control::{DeviceCounters, DeviceKind, FailureKind, NicCounters};

use crate::devices::pci::host::PciHost;
use crate::devices::pci::root::{Address, AttachError, PciRoot};
use crate::devices::virtio::activity::Activity;
use crate::devices::virtio::blk::device::{Blk, BlkError};
use crate::devices::virtio::blk::{Disk, DiskError};
use crate::devices::virtio::device::{DeviceType, VirtioDevice};
use crate::devices::virtio::fs::device::{Fs, FsError};
use crate::devices::virtio::net::counters::Counters;
use crate::devices::virtio::net::device::{Limits, Net, NetError};
use crate::devices::virtio::pci::function::VirtioPciFunction;
use crate::memory::SharedMemory;

/// Interrupt vectors up to which each queue of a new device has its own; from there on the queues of a device share
/// one. A Linux guest with a single CPU has some 180, and a device whose driver gets none does not work: with this
/// bound 64 NICs of any number of queues do.
const OWN_VECTORS: u16 = 64;
/// One for all queues, and one for the configuration.
const SHARED_VECTORS: u16 = 2;

/// Why a device is not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is one with this id.
    #[error("there is a device {0:?} already")]
    Exists(String),
    /// There is none with this id.
    #[error("there is no device {0:?}")]
    NotFound(String),
    /// It is part of every machine.
    #[error("the device {0:?} is a part of the machine and cannot be detached")]
    Permanent(String),
    /// A value is out of range.
    #[error("{field} is {value:?}, {allowed} is needed")]
    Value {
        /// The field of the request.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is needed.
        allowed: &'static str,
    },
    /// The bus is full.
    #[error(transparent)]
    Bus(#[from] AttachError),
    /// A NIC cannot be made of what the request says and brings.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The directory cannot be shared.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A disk cannot be shown as the request says.
    #[error(transparent)]
    Blk(#[from] BlkError),
    /// The host has no interrupt or no descriptor left.
    #[error("make the device's interrupts")]
    Interrupts(#[source] io::Error),
}

impl DeviceError {
    /// The kind that callers match.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Exists(_) => FailureKind::Exists,
            Self::NotFound(_) => FailureKind::NotFound,
            Self::Permanent(_) | Self::Value { .. } => FailureKind::Invalid,
            Self::Net(
                NetError::Pairs(_)
                | NetError::Mac(_)
                | NetError::Mtu(_)
                | NetError::VhostPairs { .. }
                | NetError::VhostWithLimit,
            ) => FailureKind::Invalid,
            Self::Fs(FsError::TagLength(_))
            | Self::Disk(DiskError::Kind | DiskError::Access | DiskError::Empty(_))
            | Self::Blk(_) => FailureKind::Invalid,
            Self::Bus(_) => FailureKind::Exhausted,
            Self::Net(NetError::Tap(_) | NetError::Vhost(_))
            | Self::Fs(FsError::Directory { .. } | FsError::Proc(_))
            | Self::Disk(DiskError::Host { .. })
            | Self::Interrupts(_) => FailureKind::Host,
        }
    }
}

struct Attached {
    address: Address,
    permanent: bool,
    /// Interrupt vectors that its driver can choose from.
    vectors: u16,
    /// What callers can ask of it, if it is a NIC.
    nic: Option<Nic>,
    /// What it has moved, if it is another device that counts that.
    activity: Option<(DeviceKind, Arc<Activity>)>,
}

/// What callers can ask of a NIC.
struct Nic {
    pairs: u16,
    counters: Option<Arc<Counters>>,
}

/// The devices.
pub struct Devices {
    memory: SharedMemory,
    host: Arc<dyn PciHost>,
    pci: Arc<PciRoot>,
    by_id: BTreeMap<String, Attached>,
}

impl Devices {
    /// No devices yet.
    #[must_use]
    pub fn new(memory: SharedMemory, host: Arc<dyn PciHost>, pci: Arc<PciRoot>) -> Self {
        Self {
            memory,
            host,
            pci,
            by_id: BTreeMap::new(),
        }
    }

    /// Attaches a device that every machine has.
    ///
    /// # Errors
    /// The bus is full, or the host has no interrupt or descriptor left.
    pub fn attach_permanent(
        &mut self,
        id: &str,
        device: Box<dyn VirtioDevice>,
    ) -> Result<(), DeviceError> {
        self.attach(id, device, None, true).map(|_| ())
    }

    /// Attaches a virtio-net device on the descriptors of a tap, one for each queue pair, and as many of vhost-net
    /// after them if the configuration says so; says where it is.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn attach_net(
        &mut self,
        config: &NetConfig,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Address, DeviceError> {
        self.check_id(&config.id)?;
        let mac = parse_mac(&config.mac)?;
        let limits = limits(config)?;
        let vhosts = config
            .vhost
            .then(|| descriptors.split_off(descriptors.len().div_ceil(2)));
        let mut device = Net::new(mac, config.mtu, descriptors)?.with_limits(limits)?;
        if let Some(vhosts) = vhosts {
            device = device.with_vhost(vhosts)?;
        }
        let nic = Nic {
            pairs: device.pairs(),
            counters: device.counters(),
        };
        self.attach(&config.id, Box::new(device), Some(nic), false)
    }

    /// Attaches a virtio-fs device; says where it is.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn attach_fs(&mut self, config: &FsConfig) -> Result<Address, DeviceError> {
        self.check_id(&config.id)?;
        let device = Fs::new(&config.tag, &config.directory)?;
        self.attach(&config.id, Box::new(device), None, false)
    }

    /// Attaches a virtio-blk device on the descriptor of its disk; says where it is.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn attach_blk(
        &mut self,
        config: &BlkConfig,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Address, DeviceError> {
        self.check_id(&config.id)?;
        let [disk] = descriptors
            .try_into()
            .map_err(|descriptors: Vec<_>| DeviceError::Value {
                field: "descriptors",
                value: descriptors.len().to_string(),
                allowed: "one",
            })?;
        let disk = Disk::new(disk, config.readonly)?;
        let device = Blk::new(disk, &config.serial, config.queues)?;
        self.attach(&config.id, Box::new(device), None, false)
    }

    /// Detaches a device. The guest's driver should have let go of it; to one that has not, the device is gone as if
    /// it had been pulled.
    ///
    /// # Errors
    /// There is none with this id, or it is a part of the machine.
    pub fn detach(&mut self, id: &str) -> Result<(), DeviceError> {
        match self.by_id.get(id) {
            None => return Err(DeviceError::NotFound(id.to_owned())),
            Some(attached) if attached.permanent => {
                return Err(DeviceError::Permanent(id.to_owned()));
            }
            Some(attached) => self.pci.detach(attached.address),
        };
        self.by_id.remove(id);
        Ok(())
    }

    /// The ids, in order of PCI address.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.in_order()
            .into_iter()
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// What has passed through the NICs, in order of PCI address.
    #[must_use]
    pub fn net_counters(&self) -> Vec<NicCounters> {
        self.in_order()
            .into_iter()
            .filter_map(|(id, attached)| {
                let nic = attached.nic.as_ref()?;
                Some(NicCounters {
                    id: id.clone(),
                    queue_pairs: nic.pairs,
                    passed: nic.counters.as_deref().map(Counters::told),
                })
            })
            .collect()
    }

    /// What the other devices have moved that count it, in order of PCI address.
    #[must_use]
    pub fn device_counters(&self) -> Vec<DeviceCounters> {
        self.in_order()
            .into_iter()
            .filter_map(|(id, attached)| {
                let (kind, activity) = attached.activity.as_ref()?;
                Some(DeviceCounters {
                    id: id.clone(),
                    kind: *kind,
                    to_guest: activity.to_guest.told(),
                    from_guest: activity.from_guest.told(),
                    failed: activity.failed(),
                })
            })
            .collect()
    }

    fn in_order(&self) -> Vec<(&String, &Attached)> {
        let mut devices: Vec<_> = self.by_id.iter().collect();
        devices.sort_by_key(|(_, attached)| attached.address);
        devices
    }

    fn check_id(&self, id: &str) -> Result<(), DeviceError> {
        if id.is_empty() || id.len() > 255 || id.chars().any(char::is_control) {
            return Err(DeviceError::Value {
                field: "id",
                value: id.to_owned(),
                allowed: "a name of 1 to 255 bytes without control characters",
            });
        }
        match self.by_id.contains_key(id) {
            true => Err(DeviceError::Exists(id.to_owned())),
            false => Ok(()),
        }
    }

    fn attach(
        &mut self,
        id: &str,
        device: Box<dyn VirtioDevice>,
        nic: Option<Nic>,
        permanent: bool,
    ) -> Result<Address, DeviceError> {
        let vectors = self.vectors_for(device.as_ref());
        let activity = kind(device.device_type()).zip(device.activity());
        let (memory, host) = (self.memory.clone(), self.host.clone());
        let function = VirtioPciFunction::new(device, memory, host, vectors)
            .map_err(DeviceError::Interrupts)?;
        let address = if permanent {
            self.pci.attach(Box::new(function))?
        } else {
            self.pci.attach_sharing(Box::new(function))?
        };
        let attached = Attached {
            address,
            permanent,
            vectors,
            nic,
            activity,
        };
        self.by_id.insert(id.to_owned(), attached);
        Ok(address)
    }

    /// How many interrupt vectors a new device gets: as many as it can use, as long as there are plenty.
    fn vectors_for(&self, device: &dyn VirtioDevice) -> u16 {
        let wanted = u16::try_from(device.queue_sizes().len() + 1).unwrap_or(u16::MAX);
        let given: u16 = self.by_id.values().map(|attached| attached.vectors).sum();
        if given.saturating_add(wanted) <= OWN_VECTORS {
            wanted
        } else {
            wanted.min(SHARED_VECTORS)
        }
    }
}

/// What callers call a device that moves data by requests.
fn kind(device: DeviceType) -> Option<DeviceKind> {
    match device {
        DeviceType::Block => Some(DeviceKind::Disk),
        DeviceType::FileSystem => Some(DeviceKind::FileSystem),
        DeviceType::Vsock => Some(DeviceKind::Socket),
        _ => None,
    }
}

/// The bounds on a NIC.
fn limits(config: &NetConfig) -> Result<Limits, DeviceError> {
    for (field, limit) in [
        ("receive_limit", config.receive_limit),
        ("send_limit", config.send_limit),
    ] {
        if let Some(limit) = limit
            && (limit.bytes_per_second == 0 || limit.burst_bytes == 0)
        {
            return Err(DeviceError::Value {
                field,
                value: format!("{} B/s, {} B", limit.bytes_per_second, limit.burst_bytes),
                allowed: "at least 1 of each",
            });
        }
    }
    Ok(Limits {
        receive: config.receive_limit,
        send: config.send_limit,
    })
}

/// Parses `02:42:ac:11:00:02`. Whether a NIC may have that address is the device's to say.
fn parse_mac(text: &str) -> Result<[u8; 6], DeviceError> {
    let error = || DeviceError::Value {
        field: "mac",
        value: text.to_owned(),
        allowed: "a MAC address like 02:42:ac:11:00:02",
    };
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts
            .next()
            .filter(|part| part.len() == 2)
            .ok_or_else(error)?;
        if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(error());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
    }
    parts.next().map_or(Ok(mac), |_| Err(error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pci::host::testing::RecordingHost;
    use crate::devices::virtio::device::{ActivateError, Activation, DeviceType};
    use crate::memory::GuestMemory;
    use crate::memory::layout::PCI_WINDOW;
    use vm_memory::GuestAddress;

    /// A device with so many queues.
    struct Idle(Vec<u16>);

    impl VirtioDevice for Idle {
        fn device_type(&self) -> DeviceType {
            DeviceType::Entropy
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &[u16] {
            &self.0
        }
        fn activate(&mut self, _activation: Activation) -> Result<(), ActivateError> {
            Ok(())
        }
        fn reset(&mut self) {}
    }

    #[test]
    fn queues_share_vectors_once_many_are_given() {
        let host = Arc::new(RecordingHost::default());
        let pci = Arc::new(PciRoot::new(Arc::default(), PCI_WINDOW));
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let memory = SharedMemory::new(memory);
        let mut devices = Devices::new(memory, host.clone(), pci);
        let mut attach = |id: &str, queues: usize| {
            let before = host.vectors.lock().unwrap().len();
            let device = Box::new(Idle(vec![16; queues]));
            devices.attach(id, device, None, false).unwrap();
            host.vectors.lock().unwrap().len() - before
        };
        // Three with 16 pairs of queues and a control queue would take 102.
        assert_eq!(attach("first", 33), 34);
        assert_eq!(attach("second", 33), 2);
        assert_eq!(attach("third", 3), 4);
        for index in 0..64 {
            assert!(attach(&format!("nic{index}"), 3) <= 4);
        }
        let given = host.vectors.lock().unwrap().len();
        assert!(given <= usize::from(OWN_VECTORS) + 2 * 64, "{given}");
        assert_eq!(attach("last", 1), 2);
        devices.detach("first").unwrap();
        let nic = Box::new(Idle(vec![16; 3]));
        assert_eq!(
            devices.vectors_for(nic.as_ref()),
            2,
            "still more than the bound"
        );
    }

    #[test]
    fn a_mac_is_six_bytes() {
        assert_eq!(
            parse_mac("02:42:ac:11:00:Fe").unwrap(),
            [2, 0x42, 0xac, 0x11, 0, 0xfe]
        );
        for text in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "2:42:ac:11:00:02",
            "02-42-ac-11-00-02",
            "+2:42:ac:11:00:02",
            "é:42:ac:11:00:02",
        ] {
            assert_eq!(
                parse_mac(text).unwrap_err().kind(),
                FailureKind::Invalid,
                "{text}"
            );
        }
    }
}
