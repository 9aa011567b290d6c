//! The vCPUs' threads.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::signal::Killable;

use super::end::{End, EndReport};
use crate::kvm::vcpu::{Environment, StopSignal, Vcpu};

/// How long a thread that was interrupted has to leave `KVM_RUN` before it is interrupted again.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(1);

/// vCPUs that are made and do not run yet.
#[derive(Default)]
pub struct WaitingVcpus(pub(super) Vec<Vcpu>);

impl WaitingVcpus {
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Vcpu> {
        std::mem::take(&mut self.0).into_iter()
    }
}

/// vCPUs that run.
#[derive(Default)]
pub struct VcpuThreads(Vec<JoinHandle<()>>);

impl VcpuThreads {
    /// Runs `vcpu` in a thread of its own, until its end or until `environment.stop` is set.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn spawn(
        &mut self,
        mut vcpu: Vcpu,
        environment: Environment,
        report: EndReport,
    ) -> io::Result<()> {
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{}", vcpu.number()))
            .spawn(move || {
                if let Some(end) = End::of_vcpu(&vcpu.run(&environment)) {
                    report.tell(end);
                }
            })?;
        self.0.push(thread);
        Ok(())
    }

    /// Interrupts all threads until they have ended. The stop signal must be set.
    pub fn join(&mut self) {
        loop {
            for thread in self.0.extract_if(.., |thread| thread.is_finished()) {
                if thread.join().is_err() {
                    tracing::error!("a vCPU's thread panicked");
                }
            }
            if self.0.is_empty() {
                return;
            }
            for thread in &self.0 {
                if let Err(error) = thread.kill(StopSignal::number()) {
                    tracing::debug!(%error, "interrupt a vCPU");
                }
            }
            std::thread::sleep(INTERRUPT_AGAIN);
        }
    }
}
