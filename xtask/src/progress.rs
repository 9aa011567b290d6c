//! What a long step is doing and since when, on standard error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a step speaks on a terminal, and where its output is kept.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(500);
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// A step that is under way.
pub(crate) struct Progress {
    name: &'static str,
    started: Instant,
    spoke: Instant,
    terminal: bool,
}

impl Progress {
    /// Begins the step `name`.
    pub(crate) fn start(name: &'static str) -> Progress {
        let now = Instant::now();
        Progress {
            name,
            started: now,
            spoke: now,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Says that the step has come to `doing`, at once.
    pub(crate) fn say(&mut self, doing: &str) {
        self.spoke = Instant::now();
        let elapsed = clock(self.started.elapsed());
        let mut stderr = std::io::stderr().lock();
        // A terminal that went away does not stop the work.
        let _ = if self.terminal {
            write!(stderr, "\r\x1b[K{elapsed}  {}: {doing}", self.name)
                .and_then(|()| stderr.flush())
        } else {
            writeln!(stderr, "{elapsed}  {}: {doing}", self.name)
        };
    }

    /// Says how far the step is, unless it spoke a moment ago.
    pub(crate) fn tick(&mut self, doing: impl FnOnce() -> String) {
        let interval = if self.terminal {
            TERMINAL_INTERVAL
        } else {
            LOG_INTERVAL
        };
        if self.spoke.elapsed() >= interval {
            self.say(&doing());
        }
    }

    /// Ends the step.
    pub(crate) fn finish(mut self, done: &str) {
        self.say(done);
        if self.terminal {
            eprintln!();
        }
    }
}

/// A duration as minutes and seconds.
pub(crate) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{:3}:{:02}", seconds / 60, seconds % 60)
}
