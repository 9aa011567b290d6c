//! Tests of the whole network device: a guest's driver (`nic.rs`) against a real tap in a network namespace of the
//! test's own (`tap_interface.rs`). They need root. The backend here is for the tests of single queues.

mod hostile;
mod nic;
mod pairs;
mod tap;
mod tap_interface;
mod vhost;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;

use vm_memory::{Bytes, VolatileSlice};

use super::HEADER_SIZE;
use super::backend::{Backend, Offloads};

/// A backend whose host is the test.
#[derive(Default)]
pub(super) struct TestBackend {
    /// Frames that the guest has yet to receive, with their headers.
    pub(super) incoming: Mutex<VecDeque<Vec<u8>>>,
    /// Frames that the guest has sent, with their headers.
    pub(super) sent: Mutex<Vec<Vec<u8>>>,
    /// What sending answers, before it answers well again.
    pub(super) refusals: Mutex<VecDeque<io::ErrorKind>>,
    pub(super) offloads: Mutex<Option<Offloads>>,
    pub(super) attached: Mutex<Option<bool>>,
}

impl TestBackend {
    /// Has a frame of `length` bytes arrive, with its header, and gives it.
    pub(super) fn arrive(&self, length: usize) -> Vec<u8> {
        let frame: Vec<u8> = (0..=250).cycle().skip(length).take(length).collect();
        self.incoming.lock().unwrap().push_back(frame.clone());
        frame
    }
}

impl AsRawFd for TestBackend {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}

impl Backend for TestBackend {
    fn receive(&self, pieces: &[VolatileSlice<'_>], spill: &mut [u8]) -> io::Result<usize> {
        let frame = self.incoming.lock().unwrap().pop_front();
        let frame = frame.ok_or(io::ErrorKind::WouldBlock)?;
        let mut rest = &frame[..];
        for piece in pieces {
            let count = rest.len().min(piece.len());
            piece.write_slice(&rest[..count], 0).unwrap();
            rest = &rest[count..];
        }
        spill[..rest.len()].copy_from_slice(rest);
        Ok(frame.len())
    }

    fn send(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<()> {
        if let Some(refusal) = self.refusals.lock().unwrap().pop_front() {
            return Err(refusal.into());
        }
        let mut frame = Vec::new();
        for piece in pieces {
            let start = frame.len();
            frame.resize(start + piece.len(), 0);
            piece.copy_to(&mut frame[start..]);
        }
        self.sent.lock().unwrap().push(frame);
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        *self.offloads.lock().unwrap() = Some(offloads);
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        *self.attached.lock().unwrap() = Some(attached);
        Ok(())
    }
}

/// A frame as the guest receives it: `num_buffers` is set in its header.
pub(super) fn with_num_buffers(mut frame: Vec<u8>, count: u16) -> Vec<u8> {
    frame[10..HEADER_SIZE].copy_from_slice(&count.to_le_bytes());
    frame
}
