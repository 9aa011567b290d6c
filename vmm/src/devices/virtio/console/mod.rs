//! The console device (virtio 1.2 §5.3) with its one port: what the guest prints goes to a sink of the VMM, and nothing
//! goes the other way. One worker thread serves the transmit queue; a single byte may also come from the thread of a
//! vCPU, by the emergency write. A sink that fails loses output but never stops the guest.

mod backend;
pub mod device;
mod worker;
