//! How long the agent's calls take, as its answer to Health tells it: how many took at most as long as each bound, and more
//! than the one before, and last how many took longer than all of them.

use std::time::Duration;

/// The bounds.
pub const BOUNDS: [Duration; 7] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(16),
    Duration::from_millis(64),
    Duration::from_millis(256),
    Duration::from_millis(1024),
    Duration::from_millis(4096),
];

/// How many counts there are.
pub const COUNTS: usize = BOUNDS.len() + 1;
