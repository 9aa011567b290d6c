//! RemoveContainer.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::cgroup::Cgroup;
use super::{Containers, Error, SharedMemory, lock};

impl Containers {
    /// Kills what is left of a container, and forgets it.
    ///
    /// # Errors
    /// See [`Error`]; the container stays known then, so that it can be tried again.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        let container = self.get(id)?;
        container.cgroup.kill()?;
        // A process that is being added dies with the rest, and none is added to a container whose first has ended.
        container.process("")?.wait().await;
        let _adding_none = container.adding.lock().await;
        container.cgroup.remove().await?;
        for directory in self.directories(id) {
            remove_directory(directory)?;
        }
        lock(&self.table).remove(id);
        self.unmount_unused(&container.shared_memory)
    }

    fn unmount_unused(&self, memories: &[SharedMemory]) -> Result<(), Error> {
        let unused = memories.iter().filter(|memory| !self.is_used(memory));
        for memory in unused {
            memory.unmount(&self.paths.shared_memory)?;
        }
        Ok(())
    }

    /// Removes what a creation that failed has left; its container is not in the table any more.
    pub(super) async fn clean_up(&self, id: &str, cgroup: &Cgroup, memories: &[SharedMemory]) {
        if let Err(error) = self.unmount_unused(memories) {
            tracing::error!(id, %error, "a failed container's shared memory stays");
        }
        if let Err(error) = cgroup.remove().await {
            tracing::error!(id, %error, "a failed container's cgroup stays");
        }
        for directory in self.directories(id) {
            if let Err(error) = remove_directory(directory) {
                tracing::error!(id, %error, "a failed container's files stay");
            }
        }
    }

    fn directories(&self, id: &str) -> [PathBuf; 3] {
        [
            self.paths.state.join(id),
            self.paths.bundles.join(id),
            self.paths.notify.join(id),
        ]
    }
}

fn remove_directory(path: PathBuf) -> Result<(), Error> {
    match fs::remove_dir_all(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::File {
            action: "remove",
            path,
            source,
        }),
        _ => Ok(()),
    }
}
