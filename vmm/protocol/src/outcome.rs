//! What a VMM leaves behind when its machine has ended, and what it says once the machine has been made.

use serde::{Deserialize, Serialize};

/// Why a machine ended: written to [`crate::config::VmConfig::outcome`] as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// For callers to match.
    pub cause: Cause,
    /// For people: one sentence, or a few.
    pub message: String,
    /// The console's last lines, as lossy UTF-8; empty after an orderly end.
    pub console_tail: String,
}

/// Why a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A control call ended it, or a signal to the VMM.
    Stopped,
    /// The guest asked for a reset or to be powered off: how the agent ends a machine.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// A vCPU met a triple fault.
    TripleFault,
    /// KVM could not go on: it emulates what it cannot run, or the vCPU's state is not valid.
    KvmCannotRun,
    /// The VMM itself failed.
    VmmError,
}

/// The one line of JSON that `hull-vmm --ready-fd FD` writes to FD: the machine's vCPUs run and control calls are
/// taken, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// The machine runs.
    Running,
    /// It could not be made.
    Failed {
        /// For callers to match.
        kind: StartFailure,
        /// For people, with the whole chain of causes.
        message: String,
    },
}

/// Why a machine could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFailure {
    /// The configuration is not valid.
    Config,
    /// `/dev/kvm` is missing, may not be opened, or lacks something.
    Kvm,
    /// The kernel or the initramfs is missing or is not one.
    Kernel,
    /// Anything else of the host.
    Host,
}
