//! The driver's requests (virtio 1.2 §5.2.6): read, write, flush, discard, zero, and ask the disk's name.

use std::io;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::backend::Disk;
use super::{MAX_DATA, MAX_RANGE_SECTORS, MAX_RANGES, SECTOR};
use crate::devices::virtio::activity::Activity;
use crate::devices::virtio::buffers::{ChainError, Exchange, read_front, split, write_front};
use crate::devices::virtio::queue_service::Answer;
use crate::devices::virtio::ring::{Chain, RingError};
use crate::memory::GuestMemory;

/// Bytes of a request's header: le32 type, le32 reserved, le64 sector.
const HEADER: usize = 16;
/// Bytes of a range to discard or zero: le64 sector, le32 number of sectors, le32 flags.
const RANGE: usize = 16;
/// Bytes of the disk's name.
pub(super) const NAME: usize = 20;
/// `VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`.
const UNMAP: u32 = 1;

/// `VIRTIO_BLK_T_*`.
mod request_type {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// `VIRTIO_BLK_S_*` of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Refusal {
    /// It is malformed, beyond the disk's end, or the host's disk has failed.
    IoError = 1,
    /// There is no such request, or the host's disk cannot do it.
    Unsupported = 2,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::Unsupported {
            return Self::Unsupported;
        }
        // Once for each failing request would be the guest's to have the log filled.
        tracing::debug!(%error, "a request to a disk has failed");
        Self::IoError
    }
}

/// The queue's work.
pub(super) struct Requests {
    disk: Arc<Disk>,
    name: [u8; NAME],
    activity: Arc<Activity>,
}

impl Requests {
    /// Requests are about `disk`, which is called `name`, with zeroes after it, and are counted.
    pub(super) fn new(disk: Arc<Disk>, name: [u8; NAME], activity: Arc<Activity>) -> Self {
        Self {
            disk,
            name,
            activity,
        }
    }

    /// Does what `header` says; gives how many bytes were written to `answer`.
    fn serve(
        &self,
        header: [u8; HEADER],
        request: Vec<VolatileSlice<'_>>,
        answer: Vec<VolatileSlice<'_>>,
    ) -> Result<usize, Refusal> {
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = le64(&header, 8);
        match kind {
            request_type::IN => {
                let length = length_of(&answer);
                let offset = self.check(sector, length)?;
                self.disk.read(answer, offset)?;
                self.activity.to_guest.add(length as u64);
                Ok(length)
            }
            request_type::OUT => {
                let length = length_of(&request);
                let offset = self.check(sector, length)?;
                self.check_writable()?;
                self.disk.write(request, offset)?;
                self.activity.from_guest.add(length as u64);
                Ok(0)
            }
            request_type::FLUSH => {
                self.disk.flush()?;
                Ok(0)
            }
            request_type::GET_ID => Ok(write_front(&answer, &self.name)),
            request_type::DISCARD => {
                self.on_ranges(&request, |offset, length, flags| match flags {
                    0 => Ok(self.disk.discard(offset, length)?),
                    _ => Err(Refusal::Unsupported),
                })
            }
            request_type::WRITE_ZEROES => {
                self.on_ranges(&request, |offset, length, flags| match flags {
                    0 => Ok(self.disk.zero(offset, length)?),
                    UNMAP => Ok(self.disk.discard(offset, length)?),
                    _ => Err(Refusal::Unsupported),
                })
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    /// The byte at which `length` bytes begin that are all on the disk.
    fn check(&self, sector: u64, length: usize) -> Result<u64, Refusal> {
        let length = u64::try_from(length).map_err(|_| Refusal::IoError)?;
        let is_whole = length.is_multiple_of(SECTOR) && length <= MAX_DATA;
        let end = sector.checked_add(length / SECTOR);
        match end {
            // As many sectors as a disk can have make less than 2^64 bytes.
            Some(end) if is_whole && end <= self.disk.sectors() => Ok(sector * SECTOR),
            _ => Err(Refusal::IoError),
        }
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        match self.disk.is_readonly() {
            true => Err(Refusal::IoError),
            false => Ok(()),
        }
    }

    /// Calls `work` with offset and length in bytes, and the flags, of each range that the request names, once all of
    /// them were looked at.
    fn on_ranges(
        &self,
        request: &[VolatileSlice<'_>],
        work: impl Fn(u64, u64, u32) -> Result<(), Refusal>,
    ) -> Result<usize, Refusal> {
        self.check_writable()?;
        let mut bytes = [0; RANGE * MAX_RANGES as usize];
        let length = length_of(request);
        if !length.is_multiple_of(RANGE) || length > bytes.len() {
            return Err(Refusal::IoError);
        }
        read_front(request, &mut bytes);
        let mut ranges = Vec::new();
        for range in bytes[..length].chunks_exact(RANGE) {
            let sectors = le32(range, 8);
            if sectors > MAX_RANGE_SECTORS {
                return Err(Refusal::IoError);
            }
            let sector = le64(range, 0);
            let end = sector.checked_add(sectors.into());
            if end.is_none_or(|end| end > self.disk.sectors()) {
                return Err(Refusal::IoError);
            }
            let length = u64::from(sectors) * SECTOR;
            ranges.push((sector * SECTOR, length, le32(range, 12)));
        }
        for (offset, length, flags) in ranges {
            // The host refuses a range of no length.
            if length > 0 {
                work(offset, length, flags)?;
            }
        }
        Ok(0)
    }
}

impl Answer for Requests {
    type Error = RequestError;

    fn answer(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, RequestError> {
        let Exchange {
            mut request,
            mut answer,
        } = split(memory, chain)?;
        let status = take_last_byte(&mut answer).ok_or(RequestError::NoStatus)?;
        let mut header = [0; HEADER];
        let outcome = if read_front(&request, &mut header) == HEADER {
            drop_front(&mut request, HEADER);
            self.serve(header, request, answer)
        } else {
            Err(Refusal::IoError)
        };
        let (code, written) = match outcome {
            Ok(written) => (0, written),
            Err(refusal) => {
                self.activity.fail();
                (refusal as u8, 0)
            }
        };
        status.copy_from(&[code]);
        // At most MAX_DATA and the status.
        Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
    }
}

/// Why the queue is not served any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The driver broke the queue.
    #[error("the driver broke the ring")]
    Ring(#[from] RingError),
    /// The driver offered something that is no request.
    #[error("the driver offered a malformed chain")]
    Chain(#[from] ChainError),
    /// A request cannot even be refused.
    #[error("the driver offered a request without room for its status")]
    NoStatus,
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn length_of(pieces: &[VolatileSlice<'_>]) -> usize {
    pieces.iter().map(VolatileSlice::len).sum()
}

/// Takes `count` bytes away from the front of pieces that have as many.
fn drop_front(pieces: &mut Vec<VolatileSlice<'_>>, mut count: usize) {
    while let Some(first) = pieces.first_mut()
        && count > 0
    {
        if first.len() <= count {
            count -= first.len();
            pieces.remove(0);
        } else if let Ok(rest) = first.offset(count) {
            *first = rest;
            count = 0;
        }
    }
}

fn take_last_byte<'m>(pieces: &mut Vec<VolatileSlice<'m>>) -> Option<VolatileSlice<'m>> {
    let last = pieces.pop()?;
    let before = last.len().checked_sub(1)?;
    let (front, byte) = (
        last.subslice(0, before).ok()?,
        last.subslice(before, 1).ok()?,
    );
    if before > 0 {
        pieces.push(front);
    }
    Some(byte)
}

#[cfg(test)]
mod tests;
