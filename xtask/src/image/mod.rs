//! The guest's image: one kernel, and one initramfs that holds the agent.
//!
//! The kernel depends on `guest-image/kernel.config` and Debian's kernel source only, so it is kept
//! in the cache outside the checkout. The initramfs is written anew each time, which takes no time.

pub(crate) mod agent;
mod cpio;
pub(crate) mod initramfs;
pub(crate) mod kernel;
mod kernel_config;
