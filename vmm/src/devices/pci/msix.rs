//! MSI-X (PCI 3.0 §6.8.2): a table of vectors in a BAR, each with its message and its mask.
//!
//! A vector that is not masked is connected: its eventfd goes to the interrupt controller by itself, and whoever
//! signals it touches nothing here. A masked vector is disconnected: its eventfd counts, which is the pending bit,
//! and connecting it sends what is pending.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::host::{MsiMessage, MsiVector, PciHost};

/// The capability's id.
pub const CAPABILITY_ID: u8 = 0x11;
/// Bytes of a table entry.
pub const ENTRY_SIZE: usize = 16;

const ENTRY_MASKED: u32 = 1;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;

/// The table and the pending bits of a function.
pub struct Msix {
    vectors: Vec<Box<dyn MsiVector>>,
    table: Mutex<Table>,
}

struct Table {
    enabled: bool,
    function_masked: bool,
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    /// Address (low, high), data, vector control.
    words: [u32; 4],
    connected: Option<MsiMessage>,
}

impl Entry {
    fn message(&self) -> MsiMessage {
        MsiMessage {
            address: u64::from(self.words[1]) << 32 | u64::from(self.words[0]),
            data: self.words[2],
        }
    }
}

impl Msix {
    /// A table of `count` vectors, all masked.
    ///
    /// # Errors
    /// The host has no interrupt or no descriptor left.
    pub fn new(host: &dyn PciHost, count: u16) -> io::Result<Self> {
        let vectors = (0..count)
            .map(|_| host.interrupt())
            .collect::<io::Result<_>>()?;
        let masked = Entry {
            words: [0, 0, 0, ENTRY_MASKED],
            connected: None,
        };
        Ok(Self {
            vectors,
            table: Mutex::new(Table {
                enabled: false,
                function_masked: false,
                entries: vec![masked; usize::from(count)],
            }),
        })
    }

    /// The number of vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether the table has no vectors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// The body of the capability (after its id and link), for a table and pending bits at these offsets of BAR
    /// number `bar`, and which of its bits the guest can write.
    #[must_use]
    pub fn capability(&self, bar: u32, table: u32, pending: u32) -> ([u8; 10], [u8; 10]) {
        let mut body = [0; 10];
        // The count is a u16 and a table has a vector at least.
        let last = u16::try_from(self.vectors.len().saturating_sub(1)).unwrap_or(u16::MAX);
        body[..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&(table | bar).to_le_bytes());
        body[6..].copy_from_slice(&(pending | bar).to_le_bytes());
        let mut writable = [0; 10];
        writable[..2].copy_from_slice(&(CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes());
        (body, writable)
    }

    /// The guest has written the capability's message control.
    pub fn set_control(&self, control: u16) {
        let mut table = self.lock();
        let enabled = control & CONTROL_ENABLE != 0;
        if enabled && !table.enabled {
            // What was signalled while there were no interrupts is not pending.
            for vector in &self.vectors {
                drain(vector.eventfd());
            }
        }
        table.enabled = enabled;
        table.function_masked = control & CONTROL_FUNCTION_MASK != 0;
        for index in 0..self.vectors.len() {
            self.update(&mut table, index);
        }
    }

    /// Whether the guest has switched MSI-X on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.lock().enabled
    }

    /// The guest reads the table; beyond its end are zeros.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        let table = self.lock();
        let bytes: Vec<u8> = table
            .entries
            .iter()
            .flat_map(|entry| entry.words)
            .flat_map(u32::to_le_bytes)
            .collect();
        copy_window(&bytes, offset, data);
    }

    /// The guest writes the table, in aligned words of 4 or 8 bytes; anything else is ignored.
    pub fn write_table(&self, offset: usize, data: &[u8]) {
        if !offset.is_multiple_of(4) || !matches!(data.len(), 4 | 8) {
            return;
        }
        let mut table = self.lock();
        for (index, bytes) in data.chunks_exact(4).enumerate() {
            let word = offset / 4 + index;
            let (Some(entry), Ok(bytes)) = (table.entries.get_mut(word / 4), bytes.try_into())
            else {
                return;
            };
            entry.words[word % 4] = u32::from_le_bytes(bytes);
            self.update(&mut table, word / 4);
        }
    }

    /// The guest reads the pending bits; beyond their end are zeros.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let table = self.lock();
        let mut bits = vec![0_u8; self.vectors.len().div_ceil(64) * 8];
        for (index, vector) in self.vectors.iter().enumerate() {
            if table.entries[index].connected.is_none() && is_signalled(vector.eventfd()) {
                bits[index / 8] |= 1 << (index % 8);
            }
        }
        copy_window(&bits, offset, data);
    }

    /// Signals a vector; a number beyond the table (`NO_VECTOR`) is no vector.
    pub fn signal(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            // It fails when the counter is full: then the vector is pending as it is.
            let _ = vector.eventfd().write(1);
        }
    }

    /// The eventfd of a vector, if there is such a vector and the host has a descriptor left.
    #[must_use]
    pub fn eventfd(&self, vector: u16) -> Option<EventFd> {
        self.vectors
            .get(usize::from(vector))?
            .eventfd()
            .try_clone()
            .ok()
    }

    /// Connects or disconnects a vector, as its entry and the function's masks have it.
    fn update(&self, table: &mut Table, index: usize) {
        let masked = !table.enabled || table.function_masked;
        let entry = &mut table.entries[index];
        let wanted = (!masked && entry.words[3] & ENTRY_MASKED == 0).then(|| entry.message());
        if wanted == entry.connected {
            return;
        }
        let vector = &self.vectors[index];
        if entry.connected.take().is_some()
            && let Err(error) = vector.disconnect()
        {
            tracing::warn!(%error, index, "disconnect an interrupt");
        }
        let Some(message) = wanted else { return };
        let pending = drain(vector.eventfd());
        match vector.connect(message) {
            Ok(()) => entry.connected = wanted,
            // The guest has written a message that is none.
            Err(error) => tracing::debug!(%error, index, ?message, "connect an interrupt"),
        }
        if pending {
            let _ = vector.eventfd().write(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        self.set_control(0);
    }
}

/// Takes what an eventfd has counted; says whether it was anything.
fn drain(event: &EventFd) -> bool {
    event.read().is_ok()
}

/// Whether an eventfd that nobody else takes from has counted anything.
fn is_signalled(event: &EventFd) -> bool {
    // What was counted goes back; a counter that overflows meanwhile is full, and so signalled.
    event.read().is_ok_and(|count| {
        let _ = event.write(count);
        true
    })
}

/// Copies what `data` covers of `bytes` at `offset`; the rest of `data` becomes zero.
fn copy_window(bytes: &[u8], offset: usize, data: &mut [u8]) {
    data.fill(0);
    for (byte, value) in data.iter_mut().zip(bytes.iter().skip(offset)) {
        *byte = *value;
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::testing::RecordingHost;
    use super::*;

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_1000,
        data: 0x4041,
    };

    fn write_message(msix: &Msix, index: usize) {
        msix.write_table(16 * index, &MESSAGE.address.to_le_bytes());
        msix.write_table(16 * index + 8, &MESSAGE.data.to_le_bytes());
    }

    fn mask(msix: &Msix, index: usize, masked: u32) {
        msix.write_table(16 * index + 12, &masked.to_le_bytes());
    }

    #[test]
    fn a_vector_is_connected_while_nothing_masks_it() {
        let host = RecordingHost::default();
        let msix = Msix::new(&host, 2).unwrap();
        let message = |index: usize| *host.vectors.lock().unwrap()[index].message.lock().unwrap();
        write_message(&msix, 1);
        mask(&msix, 1, 0);
        assert_eq!(message(1), None);
        msix.set_control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        assert_eq!(message(1), None);
        msix.set_control(CONTROL_ENABLE);
        assert_eq!((message(0), message(1)), (None, Some(MESSAGE)));
        mask(&msix, 1, 1);
        assert_eq!(message(1), None);
        mask(&msix, 1, 0);
        msix.write_table(16 + 8, &7_u32.to_le_bytes());
        assert_eq!(message(1).unwrap().data, 7);
        drop(msix);
        assert_eq!(message(1), None);
    }

    #[test]
    fn a_masked_vector_is_pending_and_sent_when_it_is_unmasked() {
        let host = RecordingHost::default();
        let msix = Msix::new(&host, 1).unwrap();
        let mut pending = [0; 8];
        msix.signal(0);
        msix.set_control(CONTROL_ENABLE);
        msix.read_pending(0, &mut pending);
        assert_eq!(pending[0], 0, "signalled before interrupts were on");
        msix.signal(0);
        msix.signal(0);
        msix.read_pending(0, &mut pending);
        assert_eq!(pending[0], 1);
        write_message(&msix, 0);
        mask(&msix, 0, 0);
        msix.read_pending(0, &mut pending);
        assert_eq!(pending[0], 0);
        assert_eq!(host.vectors.lock().unwrap()[0].count(), 1);
    }

    #[test]
    fn hostile_accesses_do_no_harm() {
        let host = RecordingHost::default();
        let msix = Msix::new(&host, 3).unwrap();
        for offset in [0, 1, 2, 4, 12, 44, 47, 48, 0x1000, usize::MAX - 8] {
            for length in [0, 1, 2, 3, 4, 7, 8] {
                let mut data = vec![0xff; length];
                msix.write_table(offset, &data);
                msix.read_table(offset, &mut data);
                msix.read_pending(offset, &mut data);
            }
        }
        msix.signal(3);
        msix.signal(u16::MAX);
        assert!(msix.eventfd(3).is_none());
    }
}
