//! Where the guest's output goes.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// The sink, shared by the worker and the emergency write.
#[derive(Clone)]
pub(super) struct Output(Arc<Mutex<State>>);

struct State {
    sink: Box<dyn Write + Send>,
    /// The last write failed; told once, until one succeeds again.
    failing: bool,
}

impl Output {
    pub(super) fn new(sink: Box<dyn Write + Send>) -> Self {
        Self(Arc::new(Mutex::new(State {
            sink,
            failing: false,
        })))
    }

    /// Passes `bytes` on. What the sink does not take is lost.
    pub(super) fn write(&self, bytes: &[u8]) {
        // A sink that panicked has lost output, no more.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = state
            .sink
            .write_all(bytes)
            .and_then(|()| state.sink.flush());
        if let Err(error) = &result
            && !state.failing
        {
            tracing::warn!(%error, "the guest's console output is being lost");
        }
        state.failing = result.is_err();
    }
}
