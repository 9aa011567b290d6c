//! What the cases share: bundles, network namespaces, the `hull` command with a state directory of its own, and the
//! check that nothing is left behind.
//!
//! The cases run as root on a machine whose KVM runs Linux, with `hull` in its PATH: the test bed, or the host. They
//! use what is there (iproute2, busybox) and no doubles.

pub mod bundle;
pub mod cni;
pub mod command;
pub mod containerd;
pub mod engine;
pub mod hull;
pub mod interruption;
pub mod leaks;
pub mod netns;
pub mod subreaper;
pub mod systemd;

use std::sync::atomic::{AtomicU32, Ordering};

pub use bundle::Bundle;
pub use command::{Finished, run, run_ok};
pub use engine::Engine;
pub use hull::Hull;
pub use leaks::LeakCheck;
pub use netns::Netns;
pub use subreaper::Subreaper;
pub use systemd::Systemd;

/// A name that nothing else of this machine has.
fn unique(kind: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("case-{}-{kind}{number}", std::process::id())
}
