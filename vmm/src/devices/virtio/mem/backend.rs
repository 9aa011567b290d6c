//! The region that the memory device plugs from: which of its blocks the driver has, and how much it should have.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::devices::virtio::device::Interrupt;
use crate::memory::{self, GuestMemory};

/// The unit in which memory is plugged, in bytes: a huge page, so that what a guest is given can be one.
pub const BLOCK: u64 = 2 << 20;

/// A region of guest memory whose blocks are plugged and unplugged. Shared by the device, its worker, and the main
/// thread.
pub struct Region {
    range: Range<u64>,
    state: Mutex<State>,
}

struct State {
    /// For each block whether the driver has it.
    plugged: Vec<bool>,
    /// Blocks that it has.
    count: u64,
    /// Blocks that it should have.
    wanted: u64,
    /// How the driver is told of a change; none as long as the device does not work.
    interrupt: Option<Arc<dyn Interrupt>>,
}

/// What becomes of a driver's request to plug or unplug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Done.
    Granted,
    /// Not now: the driver has as much as it should have.
    Denied,
    /// It makes no sense: blocks outside the region, or not in the state that the request says.
    Wrong,
}

/// Whether blocks are plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    Plugged,
    Unplugged,
    Mixed,
}

impl Region {
    /// The region at `range`, whose start and end are multiples of [`BLOCK`]; nothing of it is plugged.
    #[must_use]
    pub fn new(range: Range<u64>) -> Self {
        let blocks = (range.end - range.start) / BLOCK;
        Self {
            range,
            state: Mutex::new(State {
                plugged: vec![false; usize::try_from(blocks).unwrap_or(0)],
                count: 0,
                wanted: 0,
                interrupt: None,
            }),
        }
    }

    /// First guest-physical address.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.range.start
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Bytes that the driver has.
    #[must_use]
    pub fn plugged(&self) -> u64 {
        self.lock().count * BLOCK
    }

    /// Bytes that it should have.
    #[must_use]
    pub fn wanted(&self) -> u64 {
        self.lock().wanted * BLOCK
    }

    /// Asks the driver to have `bytes`, rounded up to whole blocks, and at most the region.
    pub fn want(&self, bytes: u64) {
        let interrupt = {
            let mut state = self.lock();
            state.wanted = bytes.min(self.size()).div_ceil(BLOCK);
            state.interrupt.clone()
        };
        if let Some(interrupt) = interrupt {
            interrupt.signal_config();
        }
    }

    /// The device works from now on, or no longer.
    pub(super) fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        self.lock().interrupt = interrupt;
    }

    /// The driver wants `count` blocks from `address` on.
    pub(super) fn plug(&self, address: u64, count: u16) -> Verdict {
        let Some(blocks) = self.blocks(address, count) else {
            return Verdict::Wrong;
        };
        let mut state = self.lock();
        if state.plugged[blocks.clone()].contains(&true) {
            return Verdict::Wrong;
        }
        if state.count + u64::from(count) > state.wanted {
            return Verdict::Denied;
        }
        state.plugged[blocks].fill(true);
        state.count += u64::from(count);
        Verdict::Granted
    }

    /// The driver gives `count` blocks from `address` on back. Only the worker plugs and unplugs, so the state is the
    /// same when what they held has been discarded, which may take a while.
    ///
    /// # Errors
    /// The host refused to discard them; they stay plugged.
    pub(super) fn unplug(
        &self,
        memory: &GuestMemory,
        address: u64,
        count: u16,
    ) -> io::Result<Verdict> {
        let Some(blocks) = self.blocks(address, count) else {
            return Ok(Verdict::Wrong);
        };
        if self.lock().plugged[blocks.clone()].contains(&false) {
            return Ok(Verdict::Wrong);
        }
        memory::discard(memory, address, u64::from(count) * BLOCK)?;
        let mut state = self.lock();
        state.plugged[blocks].fill(false);
        state.count -= u64::from(count);
        Ok(Verdict::Granted)
    }

    /// The driver gives all back.
    ///
    /// # Errors
    /// As with [`Self::unplug`].
    pub(super) fn unplug_all(&self, memory: &GuestMemory) -> io::Result<()> {
        memory::discard(memory, self.start(), self.size())?;
        let mut state = self.lock();
        state.plugged.fill(false);
        state.count = 0;
        Ok(())
    }

    /// How `count` blocks from `address` on are; none if they are not in the region.
    pub(super) fn state_of(&self, address: u64, count: u16) -> Option<BlockState> {
        let blocks = self.blocks(address, count)?;
        let state = self.lock();
        let plugged = &state.plugged[blocks];
        Some(match (plugged.contains(&true), plugged.contains(&false)) {
            (true, false) => BlockState::Plugged,
            (true, true) => BlockState::Mixed,
            (false, _) => BlockState::Unplugged,
        })
    }

    /// The indices of `count` blocks from `address` on: at least one, whole, and all in the region.
    fn blocks(&self, address: u64, count: u16) -> Option<Range<usize>> {
        let offset = address.checked_sub(self.range.start)?;
        if count == 0 || offset % BLOCK != 0 {
            return None;
        }
        let first = usize::try_from(offset / BLOCK).ok()?;
        let end = first.checked_add(count.into())?;
        (end <= self.lock().plugged.len()).then_some(first..end)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const START: u64 = 4 << 30;

    fn memory_and_region(blocks: u64) -> (GuestMemory, Region) {
        let size = usize::try_from(blocks * BLOCK).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(START), size)]).unwrap();
        (memory, Region::new(START..START + blocks * BLOCK))
    }

    #[test]
    fn a_driver_gets_what_is_wanted_and_no_more() {
        let (memory, region) = memory_and_region(4);
        assert_eq!(region.plug(START, 1), Verdict::Denied, "nothing is wanted");
        region.want(3 * BLOCK - 1);
        assert_eq!(region.wanted(), 3 * BLOCK);
        assert_eq!(region.plug(START + BLOCK, 2), Verdict::Granted);
        assert_eq!(region.plug(START + BLOCK, 1), Verdict::Wrong, "it has it");
        assert_eq!(region.plug(START, 2), Verdict::Wrong, "half of it");
        assert_eq!(region.plug(START + 3 * BLOCK, 1), Verdict::Granted);
        assert_eq!(region.plug(START, 1), Verdict::Denied, "that is all");
        assert_eq!(region.plugged(), 3 * BLOCK);
        for (first, count, state) in [
            (0, 1, BlockState::Unplugged),
            (0, 2, BlockState::Mixed),
            (1, 3, BlockState::Plugged),
        ] {
            assert_eq!(region.state_of(START + first * BLOCK, count), Some(state));
        }
        assert_eq!(
            region.unplug(&memory, START, 2).unwrap(),
            Verdict::Wrong,
            "it does not have the first"
        );
        region.want(u64::MAX);
        assert_eq!(region.wanted(), region.size());
    }

    #[test]
    fn what_is_given_back_is_empty_when_it_comes_again() {
        let (memory, region) = memory_and_region(2);
        region.want(2 * BLOCK);
        for all in [false, true] {
            assert_eq!(region.plug(START, 2), Verdict::Granted);
            let (first, second) = (GuestAddress(START), GuestAddress(START + BLOCK));
            memory.write_obj(7_u64, first).unwrap();
            memory.write_obj(7_u64, second).unwrap();
            if all {
                region.unplug_all(&memory).unwrap();
            } else {
                let granted = region.unplug(&memory, START, 1).unwrap();
                assert_eq!(granted, Verdict::Granted);
                assert_eq!(memory.read_obj::<u64>(second).unwrap(), 7);
                assert_eq!(region.plugged(), BLOCK);
                assert_eq!(
                    region.unplug(&memory, START + BLOCK, 1).unwrap(),
                    Verdict::Granted
                );
            }
            assert_eq!(region.plugged(), 0);
            for address in [first, second] {
                assert_eq!(memory.read_obj::<u64>(address).unwrap(), 0);
            }
        }
    }

    #[test]
    fn blocks_that_are_not_there_are_wrong() {
        let (memory, region) = memory_and_region(2);
        region.want(2 * BLOCK);
        for (address, count) in [
            (0, 1),
            (START - BLOCK, 1),
            (START + 1, 1),
            (START, 0),
            (START, 3),
            (START, u16::MAX),
            (START + 2 * BLOCK, 1),
            (u64::MAX, 1),
            (u64::MAX - BLOCK + 1, u16::MAX),
        ] {
            assert_eq!(region.plug(address, count), Verdict::Wrong, "{address:#x}");
            let unplugged = region.unplug(&memory, address, count).unwrap();
            assert_eq!(unplugged, Verdict::Wrong, "{address:#x}");
            assert_eq!(region.state_of(address, count), None, "{address:#x}");
        }
        assert_eq!(region.plugged(), 0);
    }
}
