//! How long the calls take, for Health to tell.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hull_agent_protocol::latency::{BOUNDS, COUNTS};
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::{Request, Response};

/// The call that takes as long as a process lives.
const WAITS: &str = "WaitProcess";

/// What was measured so far.
#[derive(Debug, Default)]
pub(super) struct Latency {
    counts: [AtomicU64; COUNTS],
    sum_us: AtomicU64,
}

impl Latency {
    fn add(&self, taken: Duration) {
        let place = BOUNDS.iter().position(|bound| taken <= *bound);
        // There is one count more than bounds.
        self.counts[place.unwrap_or(BOUNDS.len())].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// The counts of [`hull_agent_protocol::latency`].
    pub(super) fn counts(&self) -> Vec<u64> {
        let counts = self.counts.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// All of them together, in microseconds.
    pub(super) fn sum_us(&self) -> u64 {
        self.sum_us.load(Ordering::Relaxed)
    }
}

/// A call that is measured.
struct Timed {
    handler: Box<dyn MethodHandler + Send + Sync>,
    latency: Arc<Latency>,
}

#[async_trait]
impl MethodHandler for Timed {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let begun = Instant::now();
        let answer = self.handler.handler(context, request).await;
        self.latency.add(begun.elapsed());
        answer
    }
}

/// The services with their calls measured.
pub(super) fn timed(
    mut services: HashMap<String, Service>,
    latency: &Arc<Latency>,
) -> HashMap<String, Service> {
    for service in services.values_mut() {
        let methods = std::mem::take(&mut service.methods).into_iter();
        service.methods = methods
            .map(|(name, handler)| {
                if name == WAITS {
                    return (name, handler);
                }
                let latency = Arc::clone(latency);
                let timed: Box<dyn MethodHandler + Send + Sync> =
                    Box::new(Timed { handler, latency });
                (name, timed)
            })
            .collect();
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_counted_once_at_the_first_bound_that_it_keeps_to() {
        let latency = Latency::default();
        for ms in [0, 1, 2, 4096, 5000] {
            latency.add(Duration::from_millis(ms));
        }
        assert_eq!(latency.counts(), [2, 1, 0, 0, 0, 0, 1, 1]);
        assert_eq!(latency.sum_us(), 9_099_000);
    }
}
