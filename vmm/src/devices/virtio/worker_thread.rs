//! The thread that a device works in: it is told to stop and joined when its owner lets go of it.

use std::io;
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A device's worker. `B` is what the worker hands back when it stops, usually the device's backend.
#[derive(Debug)]
pub struct WorkerThread<B> {
    stop: EventFd,
    thread: Option<JoinHandle<B>>,
}

impl<B: Send + 'static> WorkerThread<B> {
    /// Starts `work` in a thread called `name` (at most 15 bytes are shown). It must return soon after the eventfd it
    /// is given becomes readable.
    ///
    /// # Errors
    /// The host has no descriptor or no thread left.
    pub fn spawn(name: &str, work: impl FnOnce(EventFd) -> B + Send + 'static) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let stop_of_worker = stop.try_clone()?;
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(stop_of_worker))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Stops the worker, waits for its end, and gives what it handed back; nothing if it panicked.
    pub fn stop(mut self) -> Option<B> {
        self.join()
    }
}

impl<B> WorkerThread<B> {
    fn join(&mut self) -> Option<B> {
        let thread = self.thread.take()?;
        // The counter of an eventfd that is written once does not overflow.
        let _ = self.stop.write(1);
        thread.join().ok()
    }
}

impl<B> Drop for WorkerThread<B> {
    fn drop(&mut self) {
        self.join();
    }
}
