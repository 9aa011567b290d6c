//! The process's descriptors, of which the guest could take all: each file that it looks up or opens holds one.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::dup;

/// Descriptors left to the rest of the process (control calls, vsock connections), or a quarter of all if there are
/// few.
const FOR_OTHERS: u64 = 4096;

/// Tells whether more descriptors may be taken for the guest.
#[derive(Debug)]
pub(super) struct Descriptors {
    /// What is duplicated to find the lowest free descriptor.
    probe: File,
    /// None of the guest's descriptors is this or higher.
    limit: u64,
}

impl Descriptors {
    /// Bounds the guest by the process's limit as it is now. `probe` is any open file.
    ///
    /// # Errors
    /// The limit cannot be read.
    pub(super) fn new(probe: File) -> io::Result<Self> {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        Ok(Self {
            probe,
            limit: limit - FOR_OTHERS.min(limit / 4),
        })
    }

    /// Whether the lowest free descriptor, which is the next one to be taken, is one that the guest may have.
    pub(super) fn may_take(&self) -> bool {
        dup(&self.probe).is_ok_and(|lowest| {
            u64::try_from(lowest.as_raw_fd()).is_ok_and(|lowest| lowest < self.limit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_stopped_before_the_last_descriptor() {
        let probe = || File::open("/").expect("open the root");
        let mut descriptors = Descriptors::new(probe()).expect("the limit");
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
        assert!(descriptors.limit < limit && descriptors.limit >= limit / 4 * 3);
        assert!(descriptors.may_take());
        // Standard input, output and error are open.
        descriptors.limit = 3;
        assert!(!descriptors.may_take());
    }
}
