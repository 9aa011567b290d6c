//! Disks of a sandbox: root file systems that are not a directory of the host's, but a block device or an image, which
//! the guest has as a virtio-blk device and mounts itself. Nothing of them is mounted on the host.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hull_vmm_protocol::config::BlkConfig;

use super::{Sandbox, SandboxError};
use crate::agent_client::{AgentClient, AgentError};
use crate::container::ContainerId;
use crate::vmm_process::Control;

/// Where the guest has the disks' file systems, each in a directory with its container's id.
const GUEST_DISKS: &str = "/run/hull/disks";

/// The most queues of a disk, each of which does one request at a time.
const MAX_QUEUES: u8 = 4;

/// The file systems that the guest's kernel knows.
const FILE_SYSTEMS: [&str; 2] = ["ext4", "erofs"];

/// A container's root file system on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootDisk {
    source: PathBuf,
    file_system: String,
    options: Vec<String>,
    readonly: bool,
}

impl RootDisk {
    /// The disk of a mount of `source`, a block device or an image, with `options` as in fstab; none if the guest cannot
    /// have it: it is neither, or has a file system that the guest's kernel does not know.
    #[must_use]
    pub fn of_mount(source: &Path, file_system: &str, options: &[String]) -> Option<Self> {
        let kind = source.metadata().ok()?.file_type();
        if !FILE_SYSTEMS.contains(&file_system) || !(kind.is_block_device() || kind.is_file()) {
            return None;
        }
        let readonly = options.iter().any(|option| option == "ro");
        // The guest has no loop device to set up.
        let options = options.iter().filter(|option| *option != "loop").cloned();
        Some(Self {
            source: source.into(),
            file_system: file_system.into(),
            options: options.collect(),
            readonly,
        })
    }

    /// Where the guest has the root file system of a container.
    pub(crate) fn guest_path(id: &ContainerId) -> PathBuf {
        Path::new(GUEST_DISKS).join(id.as_str())
    }

    /// Has the guest mount it, for a container, when it is at `address` on its PCI bus.
    pub(crate) fn mount(
        &self,
        agent: &mut AgentClient,
        id: &ContainerId,
        address: &str,
    ) -> Result<(), AgentError> {
        let target = Self::guest_path(id);
        agent.mount_storage(&self.file_system, address, &target, &self.options)
    }

    /// Opens it; a block device only if the host has it not mounted.
    fn open(&self) -> io::Result<File> {
        let is_device = self.source.metadata()?.file_type().is_block_device();
        OpenOptions::new()
            .read(true)
            .write(!self.readonly)
            .custom_flags(if is_device { libc::O_EXCL } else { 0 })
            .open(&self.source)
    }
}

impl Sandbox {
    /// Gives the VM a container's disk; says where the guest finds it.
    ///
    /// # Errors
    /// It cannot be opened, the VM refuses it, or the record cannot be written.
    pub fn attach_disk(
        &mut self,
        id: &ContainerId,
        disk: &RootDisk,
    ) -> Result<String, crate::Error> {
        let file = disk.open().map_err(|source| SandboxError::Disk {
            path: disk.source.clone(),
            source,
        })?;
        self.record.disks.push(id.clone());
        self.save()?;
        let device = BlkConfig {
            id: device_id(id),
            serial: "root".into(),
            readonly: disk.readonly,
            queues: self.record.most.vcpus.clamp(1, MAX_QUEUES).into(),
        };
        Ok(Control::connect(&self.directory())?.attach_blk(device, file)?)
    }

    /// Takes a container's disk out of the guest, and away from the VM; nothing happens if it has none.
    pub(super) fn detach_disk(
        &mut self,
        id: &ContainerId,
        agent: &mut AgentClient,
    ) -> Result<(), crate::Error> {
        if !self.record.disks.contains(id) {
            return Ok(());
        }
        agent.unmount_storage(&RootDisk::guest_path(id))?;
        match Control::connect(&self.directory())?.detach(&device_id(id)) {
            // What was to attach it has failed.
            Err(error) if error.is_not_found() => {}
            answer => answer?,
        }
        self.record.disks.retain(|of| of != id);
        Ok(self.save()?)
    }
}

fn device_id(id: &ContainerId) -> String {
    format!("disk-{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_device_or_an_image_with_a_file_system_that_the_guest_knows() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let options = ["loop", "ro", "noatime"].map(str::to_owned);
        let disk = RootDisk::of_mount(image.path(), "ext4", &options).unwrap();
        assert!(disk.readonly);
        assert_eq!(disk.options, ["ro", "noatime"]);
        assert!(disk.open().unwrap().set_len(1).is_err());
        let writable = RootDisk::of_mount(image.path(), "ext4", &[]).unwrap();
        writable.open().unwrap().set_len(1).unwrap();
        for (source, file_system) in [
            (image.path(), "overlay"),
            (image.path(), "bind"),
            (Path::new("/"), "ext4"),
            (Path::new("/dev/null"), "ext4"),
            (Path::new("/nonexistent"), "ext4"),
        ] {
            assert_eq!(RootDisk::of_mount(source, file_system, &[]), None);
        }
    }
}
