//! Metrics, in the text format of Prometheus: what is known of a sandbox at one moment (reading.rs), and the families
//! that it becomes (exposition.rs). serve.rs answers on a Unix socket, in threads of the sandbox's monitor;
//! [`of_all`] is `hull metrics`.
//!
//! Nothing is collected between two readings: what a reading finds, KVM, the host's kernel and the VMM count anyway. The
//! VMM and the guest are asked, and waited for no longer than `reading::LIMIT` each; of what the guest says
//! only numbers are taken.

mod exposition;
mod reading;
mod serve;

use std::io;
use std::path::PathBuf;

use crate::container::ContainerId;
use crate::store::{ContainerRecord, SandboxRecord, Store};
use reading::Reading;

pub(crate) use serve::start;

/// So many sandboxes are asked at once: one whose guest does not answer takes its time.
const AT_ONCE: usize = 8;

/// How metrics fail.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// They cannot be asked for.
    #[error("listen on {}", socket.display())]
    Listen {
        /// Where.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There can be no thread that answers.
    #[error("start the thread that gives metrics")]
    Thread(#[source] io::Error),
    /// The text cannot be made.
    #[error("write metrics")]
    Encode(#[source] prometheus::Error),
}

/// The metrics of all sandboxes of a state directory, each family once.
///
/// # Errors
/// The state directory cannot be read.
pub fn of_all(store: &Store) -> Result<String, crate::Error> {
    let containers = store.containers()?;
    let mut readings = Vec::new();
    for sandboxes in store.sandboxes()?.chunks(AT_ONCE) {
        readings.extend(read_at_once(store, sandboxes, &containers));
    }
    Ok(exposition::text(&readings)?)
}

/// Those of one sandbox.
fn of_one(store: &Store, id: &ContainerId) -> Result<String, crate::Error> {
    let reading = Reading::take(store, &store.sandbox(id)?, &store.containers()?);
    Ok(exposition::text(&[reading])?)
}

fn read_at_once(
    store: &Store,
    sandboxes: &[SandboxRecord],
    containers: &[ContainerRecord],
) -> Vec<Reading> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = sandboxes
            .iter()
            .map(|sandbox| scope.spawn(move || Reading::take(store, sandbox, containers)))
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    })
}
