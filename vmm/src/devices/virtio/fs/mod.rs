//! The file system device (virtio 1.2 §5.11): a directory of the host, shared with the guest by FUSE over virtio.
//!
//! Roles: `device.rs` is what the driver negotiates. A pool of threads (`worker.rs`) takes requests from both queues,
//! so that a slow one holds no other up. `backend.rs` is the directory: `fuse-backend-rs`'s passthrough file system,
//! with what a hostile guest, several mounts below one directory, and caching need beyond it. `credentials.rs` lets a
//! thread create files as the guest's users; `descriptors.rs` keeps some of the process's descriptors from the guest.
//!
//! What crosses the boundary: FUSE messages, all of them hostile; and host files, through descriptors that were opened
//! below the directory, never by a path of more than one component. `..` is refused, symbolic links are the guest's to
//! follow, device nodes and FIFOs are not opened on the host.
//!
//! # What it needs of its process
//! - `/proc/self/fd` when the device is made *and* while it works: files are reopened through it, and extended
//!   attributes are reached by their path below it. `/proc/self/mountinfo` must exist when the device is made; it may
//!   be any file, for what is in it is not used.
//! - CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_CHOWN, CAP_FOWNER, CAP_FSETID, CAP_SETUID, CAP_SETGID, and for device
//!   nodes and file capabilities CAP_MKNOD and CAP_SETFCAP, all effective in the user namespace that owns the files.
//!   Access is checked by the guest's kernel; for the host's not to check it a second time,
//!   [`credentials::keep_capabilities`] must be called while there is CAP_SETPCAP.
//! - A high `RLIMIT_NOFILE`: each file that the guest's kernel remembers holds one descriptor. When few are left, the
//!   guest's requests that would take more fail with ENFILE.
//! - It clears the process's umask, since the guest's is applied by the guest.
//! - The guest can make `fuse-backend-rs` log (crate `log`, target `fuse_backend_rs`) as much as it likes; that target
//!   must be off.
//!
//! # What the guest may remember
//! For one second it may use names, attributes, and file contents without asking, so that changes by the host
//! are seen within a second; sooner by who asks for them (statx(2), AT_STATX_FORCE_SYNC). Contents stay in its page cache
//! beyond that as long as size and modification time stay the same (FUSE_AUTO_INVAL_DATA), so running the same program
//! again reads nothing. Writes go through to the host at once: with a write-back cache the guest would no longer see the
//! host's changes to a file's size.
//!
//! Each mount below the directory is a mount of its own in the guest (FUSE_SUBMOUNTS), so that no two files there have
//! the same device and inode number. What it costs: in such a mount, Linux (6.12) asks for `security.capability` before
//! each small write.

mod backend;
pub mod credentials;
mod descriptors;
pub mod device;
#[cfg(test)]
mod tests;
mod worker;
