//! How long the steps of a start take, and how moments are written down.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One step that has been taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name: one word with underscores.
    pub name: String,
    /// Its length in microseconds.
    pub elapsed_us: u64,
    /// When it ended, in microseconds after the stopwatch was started.
    pub total_us: u64,
}

/// Measures one step after the other.
///
/// Each becomes an event of level debug with the fields `phase`, `elapsed_us` and `total_us` (so `hull --debug --log
/// FILE --log-format json` writes a line of JSON for each), and they are kept in the container's record, which
/// `hull state` does not show.
#[derive(Debug)]
pub struct Stopwatch {
    origin: Moment,
    last: Moment,
    phases: Vec<Phase>,
}

impl Stopwatch {
    /// Starts it.
    pub fn start() -> Self {
        Self::since(Moment::now())
    }

    /// One that goes on from where another process started it.
    pub fn since(origin: Moment) -> Self {
        Self {
            origin,
            last: Moment::now(),
            phases: Vec::new(),
        }
    }

    /// The step `name` ends now, and the next begins.
    pub fn phase(&mut self, name: &str) {
        let now = Moment::now();
        let phase = Phase {
            name: name.to_owned(),
            elapsed_us: now.0.saturating_sub(self.last.0),
            total_us: now.0.saturating_sub(self.origin.0),
        };
        self.last = now;
        tracing::debug!(
            phase = phase.name,
            elapsed_us = phase.elapsed_us,
            total_us = phase.total_us,
            "phase"
        );
        self.phases.push(phase);
    }

    /// When it was started.
    pub fn origin(&self) -> Moment {
        self.origin
    }

    /// The steps so far.
    pub fn into_phases(self) -> Vec<Phase> {
        self.phases
    }
}

/// A moment of CLOCK_BOOTTIME, in microseconds: the same for all processes of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        // CLOCK_BOOTTIME has been there since Linux 2.6.39.
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Self(u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
    }
}

/// `time` as RFC 3339 has it, in UTC, with nanoseconds: `2026-11-21T03:00:00.000000000Z`.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second_of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil_date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
        since.subsec_nanos()
    )
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01. Years are counted from March, so that the
/// leap day is a year's last, and in eras of 400 years, which are all equally long.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_in_the_gregorian_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (951_868_799, "2000-02-29T23:59:59.000000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn phases_add_up() {
        let mut stopwatch = Stopwatch::start();
        stopwatch.phase("one");
        stopwatch.phase("two");
        let phases = stopwatch.into_phases();
        assert_eq!(phases[0].name, "one");
        assert!(phases[1].total_us >= phases[0].total_us + phases[1].elapsed_us);
    }
}
