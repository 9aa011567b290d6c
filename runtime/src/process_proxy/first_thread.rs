//! The first thread of a proxy, whose mount namespace is to others that of the process. It does nothing but what it is asked
//! for, which decides what they find there; everything else is done in another thread, which stays with the host's files.

use std::io;
use std::sync::mpsc;
use std::thread;

use super::ProxyError;

type Task = Box<dyn FnOnce() + Send>;

/// Takes tasks for it.
pub(super) struct FirstThread {
    tasks: mpsc::Sender<Task>,
}

/// Runs `session` in another thread, and until that ends, in this one, what it asks for; gives what it gives, none if it
/// panicked.
///
/// # Errors
/// There is no other thread.
pub(super) fn run_beside<T: Send>(
    session: impl FnOnce(&FirstThread) -> T + Send,
) -> io::Result<Option<T>> {
    let (tasks, asked) = mpsc::channel();
    let first = FirstThread { tasks };
    thread::scope(|scope| {
        let session = thread::Builder::new()
            .name("session".into())
            .spawn_scoped(scope, move || session(&first))?;
        asked.into_iter().for_each(|task: Task| task());
        Ok(session.join().ok())
    })
}

impl FirstThread {
    /// What `task` gives there.
    ///
    /// # Errors
    /// That of `task`.
    pub(super) fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> Result<T, ProxyError> + Send + 'static,
    ) -> Result<T, ProxyError> {
        let gone = || ProxyError::host("ask its first thread")(io::ErrorKind::BrokenPipe.into());
        let (done, answer) = mpsc::sync_channel(1);
        let task = move || {
            // Whoever has asked waits for it.
            let _ = done.send(task());
        };
        self.tasks.send(Box::new(task)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}
