//! The host-in-a-box: a Debian 13 machine under QEMU's TCG, whose emulated SVM gives it a KVM that runs Linux.
//!
//! [`image`] makes it once: a tree of Debian's packages, a disk, and the state of the booted machine in a file.
//! [`instance`] keeps copies of it, each by a name and in a process of its own (the [`keeper`]), and restores one in
//! two seconds. [`place`] decides whether the bed is needed at all, and [`cases`] runs the test binaries in it.
//!
//! What goes into the machine is in `tests/testbed/`.

pub(crate) mod cases;
mod erratum;
mod image;
pub(crate) mod instance;
pub(crate) mod keeper;
mod locks;
pub(crate) mod place;
mod qemu;
mod qmp;
mod ssh;

pub(crate) use image::Image;
pub(crate) use instance::Instance;
pub(crate) use ssh::Terminal;
