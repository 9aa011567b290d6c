//! StartContainer: lets a container's first process execute its program.

use std::sync::Arc;

use super::{Containers, Error, lock};

impl Containers {
    /// Starts a container that was created.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(&self, id: &str) -> Result<(), Error> {
        let container = self.get(id)?;
        let process = container.process("")?;
        if process.exit().is_some() {
            return Err(container.state("stopped"));
        }
        container.volumes.refresh().await;
        let mut started = lock(&container.started);
        if *started {
            return Err(container.state("running"));
        }
        // Neither forks nor waits: it writes one byte to the process's socket and the new state to its file.
        libcontainer::container::Container::load(self.paths.state.join(id))
            .and_then(|mut state| state.start())
            .map_err(Error::Start)?;
        *started = true;
        if let Some(socket) = container.take_notify_socket() {
            let process = Arc::clone(&process);
            tokio::spawn(async move { socket.discard(&process).await });
        }
        Ok(())
    }
}
