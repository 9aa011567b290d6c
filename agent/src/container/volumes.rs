//! Volumes whose attributes the guest's kernel remembers: for a second it asks the host for nothing that it knows
//! already. An engine writes `/etc/hosts` between `create` and `start`, as Podman does, or as it connects a network;
//! a process that is started after that must not find the file as it was before.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use tokio::sync::Mutex;

/// How long the kernel remembers attributes: what the VMM's file system device says.
const VALIDITY: Duration = Duration::from_secs(1);

/// What a container binds: files, and directories for themselves, not what is in them.
#[derive(Debug)]
pub(super) struct Volumes {
    sources: Arc<[PathBuf]>,
    /// Held while they are asked for, so that a host which does not answer holds one thread and no more.
    asking: Arc<Mutex<()>>,
}

impl Volumes {
    pub(super) fn of(spec: &Spec) -> Self {
        let mounts = spec.mounts().iter().flatten();
        let bound = mounts.filter(|mount| mount.typ().as_deref() == Some("bind"));
        Self {
            sources: bound.filter_map(|mount| mount.source().clone()).collect(),
            asking: Arc::default(),
        }
    }

    /// Has the kernel ask the host for their attributes now. Waits for the answers only as long as the kernel would have
    /// remembered the old ones.
    pub(super) async fn refresh(&self) {
        let (sources, asking) = (Arc::clone(&self.sources), Arc::clone(&self.asking));
        let ask = async move {
            let asked = asking.lock_owned().await;
            tokio::task::spawn_blocking(move || {
                let _asked = asked;
                let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW;
                for source in &*sources {
                    if let Err(error) = statx(CWD, source, flags, StatxFlags::BASIC_STATS) {
                        tracing::warn!(?source, %error, "a volume cannot be looked at");
                    }
                }
            })
            .await
        };
        match tokio::time::timeout(VALIDITY, ask).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "looking at volumes ended"),
            Err(_) => tracing::warn!("the host does not answer for a volume"),
        }
    }
}
