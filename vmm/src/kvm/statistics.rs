//! What KVM counts of a vCPU, by name (`Documentation/virt/kvm/api.rst` §4.133, `KVM_GET_STATS_FD`). It counts whether
//! or not somebody reads, and reading does not interrupt the vCPU.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{
    KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_MASK, KVM_STATS_UNIT_MASK, KVM_STATS_UNIT_NONE,
};

#[allow(unsafe_code, reason = "the macro makes an unsafe function")]
mod ioctl {
    nix::ioctl_none!(kvm_get_stats_fd, 0xAE, 0xCE);
}

/// Bytes of `struct kvm_stats_header`: six times u32.
const HEADER: usize = 24;
/// Bytes of `struct kvm_stats_desc` before the name.
const DESCRIPTOR: usize = 16;

/// The counters of a vCPU: of all that KVM tells of it, what only grows and is a number of events.
#[derive(Debug)]
pub struct Statistics {
    file: File,
    /// Names, and where in the file the values are.
    counters: Vec<(String, u64)>,
}

impl Statistics {
    /// Opens those of `vcpu`, which must not run. Nothing, if the kernel has none (it has since Linux 5.14).
    pub(super) fn open(vcpu: &impl AsRawFd) -> io::Result<Option<Self>> {
        // SAFETY: the ioctl takes no argument, and the descriptor is open as long as its owner is borrowed.
        #[allow(unsafe_code)]
        let answer = unsafe { ioctl::kvm_get_stats_fd(vcpu.as_raw_fd()) };
        let raw = match answer {
            Err(nix::errno::Errno::ENOTTY | nix::errno::Errno::EINVAL) => return Ok(None),
            answer => answer?,
        };
        // SAFETY: the kernel has just made the descriptor for this call.
        #[allow(unsafe_code)]
        let file = File::from(unsafe { OwnedFd::from_raw_fd(raw) });
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let field = |index: usize| u32_at(&header, index * 4);
        let (name_size, count) = (field(1)? as usize, field(2)? as usize);
        let (descriptors_at, data_at) = (field(4)?, field(5)?);
        let mut descriptors = vec![0; count * (DESCRIPTOR + name_size)];
        file.read_exact_at(&mut descriptors, descriptors_at.into())?;
        let counters = descriptors
            .chunks_exact(DESCRIPTOR + name_size)
            .filter_map(|descriptor| counter(descriptor, data_at))
            .collect();
        Ok(Some(Self { file, counters }))
    }

    /// All counters now.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn read(&self) -> io::Result<impl Iterator<Item = (&str, u64)>> {
        let mut values = Vec::with_capacity(self.counters.len());
        for (name, offset) in &self.counters {
            let mut value = [0; size_of::<u64>()];
            self.file.read_exact_at(&mut value, *offset)?;
            values.push((name.as_str(), u64::from_ne_bytes(value)));
        }
        Ok(values.into_iter())
    }
}

/// The name and the place of what a descriptor describes, if that is a counter.
fn counter(descriptor: &[u8], data_at: u32) -> Option<(String, u64)> {
    let flags = u32_at(descriptor, 0).ok()?;
    let values = u16::from_ne_bytes(descriptor.get(6..8)?.try_into().ok()?);
    let is_counter = flags & KVM_STATS_TYPE_MASK == KVM_STATS_TYPE_CUMULATIVE
        && flags & KVM_STATS_UNIT_MASK == KVM_STATS_UNIT_NONE
        && values == 1;
    let offset = u32_at(descriptor, 8).ok()?;
    let name = descriptor[DESCRIPTOR..].split(|byte| *byte == 0).next()?;
    let name = str::from_utf8(name).ok()?.to_owned();
    is_counter.then(|| (name, u64::from(data_at) + u64::from(offset)))
}

fn u32_at(bytes: &[u8], offset: usize) -> io::Result<u32> {
    let field = bytes.get(offset..offset + 4).map(<[u8; 4]>::try_from);
    match field {
        Some(Ok(field)) => Ok(u32::from_ne_bytes(field)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(flags: u32, values: u16, name: &str) -> Vec<u8> {
        let mut bytes = flags.to_ne_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(values.to_ne_bytes());
        bytes.extend(40_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(name.as_bytes());
        bytes.resize(DESCRIPTOR + 48, 0);
        bytes
    }

    #[test]
    fn counters_of_events_are_taken_and_nothing_else() {
        let taken = counter(&descriptor(0, 1, "exits"), 1000);
        assert_eq!(taken, Some(("exits".into(), 1040)));
        let nanoseconds = 2 << 4;
        let (instant, histogram) = (1, 4);
        for (flags, values) in [(nanoseconds, 1), (instant, 1), (histogram, 64), (0, 2)] {
            assert_eq!(counter(&descriptor(flags, values, "other"), 1000), None);
        }
        assert_eq!(counter(&[0; 5], 1000), None);
    }
}
