//! The entropy device (virtio 1.2 §5.4): the guest offers empty buffers and gets them back filled from the host's
//! random number generator. One worker thread serves its only queue; nothing but the driver's ring and the source's
//! descriptor crosses its boundary.

mod backend;
pub mod device;
mod worker;
