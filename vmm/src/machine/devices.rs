//! The machine's devices behind PCI, by their ids: attached before the boot and while the machine runs, by the same
//! calls.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hull_vmm_protocol::config::{FsConfig, NetConfig};
use hull_vmm_protocol::control::FailureKind;

use crate::devices::pci::host::PciHost;
use crate::devices::pci::root::{AttachError, PciRoot, Slot};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::fs::device::{Fs, FsError};
use crate::devices::virtio::net::device::{Net, NetError};
use crate::devices::virtio::pci::function::VirtioPciFunction;
use crate::memory::SharedMemory;

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
            Self::Net(NetError::Pairs(_) | NetError::Mac(_) | NetError::Mtu(_)) => {
                FailureKind::Invalid
            }
            Self::Fs(FsError::TagLength(_)) => FailureKind::Invalid,
            Self::Bus(_) => FailureKind::Exhausted,
            Self::Net(NetError::Tap(_))
            | Self::Fs(FsError::Directory { .. } | FsError::Proc(_))
            | Self::Interrupts(_) => FailureKind::Host,
        }
    }
}

struct Attached {
    slot: Slot,
    permanent: bool,
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
        self.attach(id, device, true).map(|_| ())
    }

    /// Attaches a virtio-net device on `taps`, one for each queue pair; says where it is.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn attach_net(
        &mut self,
        config: &NetConfig,
        taps: Vec<OwnedFd>,
    ) -> Result<Slot, DeviceError> {
        self.check_id(&config.id)?;
        let mac = parse_mac(&config.mac)?;
        let device = Net::new(mac, config.mtu, taps)?;
        self.attach(&config.id, Box::new(device), false)
    }

    /// Attaches a virtio-fs device; says where it is.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn attach_fs(&mut self, config: &FsConfig) -> Result<Slot, DeviceError> {
        self.check_id(&config.id)?;
        let device = Fs::new(&config.tag, &config.directory)?;
        self.attach(&config.id, Box::new(device), false)
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
            Some(attached) => self.pci.detach(attached.slot),
        };
        self.by_id.remove(id);
        Ok(())
    }

    /// The ids, in order of PCI address.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let mut devices: Vec<_> = self.by_id.iter().collect();
        devices.sort_by_key(|(_, attached)| attached.slot);
        devices.into_iter().map(|(id, _)| id.clone()).collect()
    }

    fn check_id(&self, id: &str) -> Result<(), DeviceError> {
        if id.is_empty() || id.len() > 64 || id.chars().any(char::is_control) {
            return Err(DeviceError::Value {
                field: "id",
                value: id.to_owned(),
                allowed: "a name of 1 to 64 bytes without control characters",
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
        permanent: bool,
    ) -> Result<Slot, DeviceError> {
        let function = VirtioPciFunction::new(device, self.memory.clone(), self.host.clone())
            .map_err(DeviceError::Interrupts)?;
        let slot = self.pci.attach(Box::new(function))?;
        self.by_id
            .insert(id.to_owned(), Attached { slot, permanent });
        Ok(slot)
    }
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
