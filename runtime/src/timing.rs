//! How long the steps of a start take.

use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::*;

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
