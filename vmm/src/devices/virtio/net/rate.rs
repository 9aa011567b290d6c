//! A bound on what passes in one direction of a NIC: a token bucket, shared by the workers of all pairs. It is asked
//! before a round, and told afterwards what has passed. The last frame of a round may take more than there is; then
//! the next waits the longer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hull_vmm_protocol::config::RateLimit;

/// A bucket holds what its rate gives in so long at least: workers sleep for whole milliseconds, and a bucket that is
/// full before they wake would keep them below the rate.
const GRAIN: Duration = Duration::from_millis(5);

/// A bucket. What it holds is kept as the time at which it will be full.
#[derive(Debug)]
struct TokenBucket {
    bytes_per_second: u64,
    /// How long it takes to fill.
    depth: Duration,
    full_at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    fn new(limit: RateLimit, now: Instant) -> Self {
        let bytes_per_second = limit.bytes_per_second.max(1);
        Self {
            bytes_per_second,
            depth: time_of(limit.burst_bytes, bytes_per_second).max(GRAIN),
            full_at: now,
        }
    }

    /// How many bytes may pass now, at least one; or from when on one may.
    fn allowance(&self, now: Instant) -> Result<usize, Instant> {
        let missing = self.full_at.saturating_duration_since(now);
        match self.depth.checked_sub(missing) {
            Some(held) if !held.is_zero() => {
                let bytes = held.as_nanos() * u128::from(self.bytes_per_second) / NANOS;
                Ok(usize::try_from(bytes).unwrap_or(usize::MAX).max(1))
            }
            _ => Err(now + (missing - self.depth) + Duration::from_nanos(1)),
        }
    }

    /// So many bytes have passed.
    fn take(&mut self, now: Instant, bytes: u64) {
        self.full_at = self.full_at.max(now) + time_of(bytes, self.bytes_per_second);
    }
}

const NANOS: u128 = 1_000_000_000;

/// How long the rate takes for so many bytes; a century at most.
fn time_of(bytes: u64, bytes_per_second: u64) -> Duration {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    let nanos = u128::from(bytes) * NANOS / u128::from(bytes_per_second);
    u64::try_from(nanos).map_or(CENTURY, |nanos| Duration::from_nanos(nanos).min(CENTURY))
}

/// A bound, or none.
#[derive(Debug, Default)]
pub(super) struct Rate(Option<Mutex<TokenBucket>>);

impl Rate {
    /// The bound of `limit`, of which nothing is used yet.
    pub(super) fn new(limit: Option<RateLimit>, now: Instant) -> Self {
        Self(limit.map(|limit| Mutex::new(TokenBucket::new(limit, now))))
    }

    /// How many bytes may pass now, at least one; or from when on one may.
    pub(super) fn allowance(&self, now: Instant) -> Result<usize, Instant> {
        self.lock()
            .map_or(Ok(usize::MAX), |bucket| bucket.allowance(now))
    }

    /// So many bytes have passed.
    pub(super) fn take(&self, now: Instant, bytes: u64) {
        if let Some(mut bucket) = self.lock() {
            bucket.take(now, bytes);
        }
    }

    fn lock(&self) -> Option<MutexGuard<'_, TokenBucket>> {
        let bucket = self.0.as_ref()?;
        Some(bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(bytes_per_second: u64, burst_bytes: u64, now: Instant) -> Rate {
        let limit = RateLimit {
            bytes_per_second,
            burst_bytes,
        };
        Rate::new(Some(limit), now)
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let start = Instant::now();
        let rate = rate(1000, 500, start);
        assert_eq!(rate.allowance(start), Ok(500));
        rate.take(start, 500);
        let next = rate.allowance(start).unwrap_err();
        assert!(next > start && next <= start + Duration::from_millis(1));
        let later = start + Duration::from_millis(100);
        assert_eq!(rate.allowance(later), Ok(100));
        // A pause gives no more than the burst.
        assert_eq!(rate.allowance(start + Duration::from_secs(60)), Ok(500));
    }

    #[test]
    fn a_frame_that_takes_too_much_is_paid_for_later() {
        let start = Instant::now();
        let rate = rate(1000, 500, start);
        rate.take(start, 2500);
        let next = rate.allowance(start).unwrap_err();
        assert_eq!(
            next,
            start + Duration::from_secs(2) + Duration::from_nanos(1)
        );
        assert!(rate.allowance(next).is_ok());
    }

    #[test]
    fn over_a_long_time_neither_more_nor_less_than_the_rate_passes() {
        let start = Instant::now();
        let mut now = start;
        let rate = rate(1_000_000, 10_000, start);
        let mut passed: u64 = 0;
        while now < start + Duration::from_secs(10) {
            match rate.allowance(now) {
                Ok(_) => {
                    rate.take(now, 1514);
                    passed += 1514;
                }
                Err(next) => {
                    assert!(next > now, "it never says to wait for no time");
                    now = next;
                }
            }
        }
        assert!((10_000_000..10_015_000).contains(&passed), "{passed}");
    }

    #[test]
    fn extreme_limits_do_not_overflow() {
        let start = Instant::now();
        for (speed, burst) in [(0, 0), (1, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
            let rate = rate(speed, burst, start);
            assert!(rate.allowance(start).is_ok());
            rate.take(start, 65_550);
            let _ = rate.allowance(start + Duration::from_secs(1));
        }
        assert_eq!(Rate::default().allowance(start), Ok(usize::MAX));
    }
}
