//! The memory device (virtio 1.2 §5.15): memory that a guest gets while it runs. Its region of guest-physical addresses
//! is mapped from the start and costs nothing until it is touched; the host asks for so much of it to be plugged, and
//! the driver says block by block what it takes and gives back ([`backend::Region`]). What it gives back is discarded.
//!
//! The one queue is served in a worker thread; the main thread sets the wanted size. A guest that touches blocks which
//! are not plugged gets memory all the same, within the limits of the VMM's cgroup: as a balloon, this device asks.

pub mod backend;
pub mod device;
mod worker;
