//! What PCI functions ask of the machine they are plugged into.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// The machine, as a PCI function sees it.
pub trait PciHost: Send + Sync {
    /// A new interrupt, given back when it is dropped.
    ///
    /// # Errors
    /// None is left, or the host has no descriptor left.
    fn interrupt(&self) -> io::Result<Box<dyn MsiVector>>;

    /// Signals `event` whenever the guest writes at the guest-physical `address`, in any width.
    ///
    /// # Errors
    /// There is a doorbell at that address already, or none is left.
    fn add_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Takes away what [`PciHost::add_doorbell`] made.
    ///
    /// # Errors
    /// There is no such doorbell.
    fn remove_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;
}

/// What a device writes, and where, to interrupt (PCI 3.0 §6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// The address.
    pub address: u64,
    /// The data.
    pub data: u32,
}

/// An interrupt that is signalled through an eventfd.
pub trait MsiVector: Send + Sync {
    /// From now on the eventfd sends `message`; at once, if it has been signalled meanwhile.
    ///
    /// # Errors
    /// The message is none that the interrupt controller knows.
    fn connect(&self, message: MsiMessage) -> io::Result<()>;

    /// From now on the eventfd only counts.
    ///
    /// # Errors
    /// The vector is not connected.
    fn disconnect(&self) -> io::Result<()>;

    /// The eventfd, not blocking.
    fn eventfd(&self) -> &EventFd;
}

#[cfg(test)]
pub(crate) mod testing {
    //! A machine that writes down what it is asked.

    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    pub(crate) struct RecordingHost {
        pub(crate) doorbells: Mutex<Vec<u64>>,
        pub(crate) vectors: Mutex<Vec<Arc<RecordingVector>>>,
    }

    pub(crate) struct RecordingVector {
        event: EventFd,
        pub(crate) message: Mutex<Option<MsiMessage>>,
    }

    impl RecordingVector {
        pub(crate) fn count(&self) -> u64 {
            self.event.read().unwrap_or(0)
        }
    }

    impl MsiVector for Arc<RecordingVector> {
        fn connect(&self, message: MsiMessage) -> io::Result<()> {
            *self.message.lock().unwrap() = Some(message);
            Ok(())
        }
        fn disconnect(&self) -> io::Result<()> {
            *self.message.lock().unwrap() = None;
            Ok(())
        }
        fn eventfd(&self) -> &EventFd {
            &self.event
        }
    }

    impl PciHost for RecordingHost {
        fn interrupt(&self) -> io::Result<Box<dyn MsiVector>> {
            let vector = Arc::new(RecordingVector {
                event: EventFd::new(libc::EFD_NONBLOCK)?,
                message: Mutex::new(None),
            });
            self.vectors.lock().unwrap().push(vector.clone());
            Ok(Box::new(vector))
        }
        fn add_doorbell(&self, address: u64, _event: &EventFd) -> io::Result<()> {
            let mut doorbells = self.doorbells.lock().unwrap();
            if doorbells.contains(&address) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            doorbells.push(address);
            Ok(())
        }
        fn remove_doorbell(&self, address: u64, _event: &EventFd) -> io::Result<()> {
            let mut doorbells = self.doorbells.lock().unwrap();
            let before = doorbells.len();
            doorbells.retain(|doorbell| *doorbell != address);
            if doorbells.len() == before {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(())
        }
    }
}
