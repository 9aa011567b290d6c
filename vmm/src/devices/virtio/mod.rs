//! virtio devices (Virtual I/O Device specification 1.2), each a folder with the same files: `device.rs` is what the
//! driver negotiates, `worker.rs` the queue logic, `backend.rs` the host's side. `pci/` is the transport.

pub mod activity;
pub mod blk;
pub mod buffers;
pub mod console;
pub mod device;
pub mod fs;
pub mod kick_wait;
pub mod mem;
pub mod net;
pub mod pci;
pub mod queue_service;
pub mod ring;
pub mod rng;
#[cfg(test)]
mod test_driver;
pub mod vsock;
pub mod worker_thread;
