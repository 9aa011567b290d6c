//! When the monitor looks: soon after a change, once for a burst of them, and not without end.

use std::time::{Duration, Instant};

/// A burst is over when nothing has changed for so long.
const QUIET: Duration = Duration::from_millis(20);
/// What changes without a pause is looked at this often.
const MOST: Duration = Duration::from_millis(100);
/// After a failure it is tried again after so long, each time twice as long, at most [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(60);
/// So many looks in a row may each change the namespace before changes are looked at ever more slowly: hull's own
/// changes are events as well, and somebody may undo each of them.
const FREE_LOOKS: u32 = 4;
const SLOW_FIRST: Duration = Duration::from_millis(100);
const SLOW_MOST: Duration = Duration::from_secs(5);

/// What came of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// VM and guest are as the namespace is, which was not changed for that.
    Settled,
    /// So they are, and uplinks were wired or unwired for it.
    Rewired,
    /// They are not.
    Failed,
}

/// The times of events and looks, and of the next look.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the first and the last event came that no look has followed yet.
    burst: Option<(Instant, Instant)>,
    retry: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
    /// Looks in a row that were not [`Outcome::Settled`].
    restless: u32,
}

impl Pace {
    /// Something has changed.
    pub(super) fn event(&mut self, now: Instant) {
        let (first, _) = self.burst.unwrap_or((now, now));
        self.burst = Some((first, now));
    }

    /// When to look next; never, if nothing changes.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let over = self
            .burst
            .map(|(first, last)| (last + QUIET).min(first + MOST))
            .map(|over| self.not_before.map_or(over, |bound| bound.max(over)));
        [over, self.retry].into_iter().flatten().min()
    }

    /// A look begins: it sees all events up to now.
    pub(super) fn look(&mut self) {
        self.burst = None;
        self.retry = None;
    }

    /// A look has ended.
    pub(super) fn looked(&mut self, now: Instant, outcome: Outcome) {
        match outcome {
            Outcome::Settled => self.restless = 0,
            Outcome::Rewired | Outcome::Failed => self.restless = self.restless.saturating_add(1),
        }
        let beyond = self.restless.checked_sub(FREE_LOOKS + 1);
        self.not_before = beyond.map(|looks| now + doubled(SLOW_FIRST, looks).min(SLOW_MOST));
        if outcome == Outcome::Failed {
            self.retry = Some(now + doubled(RETRY_FIRST, self.failures).min(RETRY_MOST));
            self.failures = self.failures.saturating_add(1);
        } else {
            self.failures = 0;
        }
    }
}

fn doubled(duration: Duration, times: u32) -> Duration {
    let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    duration.checked_mul(factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_burst_is_looked_at_once_when_it_is_over() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.next_look(), None);
        for after in [0, 10, 25] {
            pace.event(start + ms(after));
        }
        assert_eq!(pace.next_look(), Some(start + ms(45)));
        pace.look();
        assert_eq!(pace.next_look(), None);
        pace.looked(start + ms(50), Outcome::Settled);
        assert_eq!(pace.next_look(), None);
    }

    #[test]
    fn a_stream_of_events_is_looked_at_all_the_same() {
        let start = Instant::now();
        let mut pace = Pace::default();
        for after in 0..1000 {
            pace.event(start + ms(after));
        }
        assert_eq!(pace.next_look(), Some(start + MOST));
    }

    #[test]
    fn failures_are_tried_again_ever_more_seldom_and_at_once_when_something_changes() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        let mut waits = Vec::new();
        for _ in 0..40 {
            pace.look();
            pace.looked(now, Outcome::Failed);
            let next = pace.next_look().unwrap();
            waits.push(next - now);
            now = next;
        }
        assert_eq!(waits[..3], [RETRY_FIRST, RETRY_FIRST * 2, RETRY_FIRST * 4]);
        assert_eq!(waits.last(), Some(&RETRY_MOST));

        let mut pace = Pace::default();
        pace.look();
        pace.looked(now, Outcome::Failed);
        pace.event(now + ms(1));
        assert_eq!(pace.next_look(), Some(now + ms(1) + QUIET));
        pace.look();
        pace.looked(now + ms(30), Outcome::Settled);
        assert_eq!(pace.next_look(), None);
    }

    #[test]
    fn a_fight_over_the_wiring_is_slowed_down_and_forgotten_when_it_is_over() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        let mut waits = Vec::new();
        for _ in 0..40 {
            pace.event(now);
            let next = pace.next_look().unwrap();
            waits.push(next - now);
            now = next;
            pace.look();
            pace.looked(now, Outcome::Rewired);
        }
        assert!(waits[..5].iter().all(|wait| *wait == QUIET), "{waits:?}");
        assert_eq!(waits[5], SLOW_FIRST);
        assert_eq!(waits.last(), Some(&SLOW_MOST));
        pace.event(now);
        pace.look();
        pace.looked(now, Outcome::Settled);
        pace.event(now);
        assert_eq!(pace.next_look(), Some(now + QUIET));
    }
}
