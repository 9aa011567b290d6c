//! What the guest prints on its console: the last bytes in memory, and a file that stays within a limit however much
//! the guest prints. Written by the console's worker and by vCPUs (early serial port).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that are kept in memory.
pub const TAIL: usize = 32 * 1024;
/// The largest size of the file, in bytes. When the next write would pass it, the file starts again with the bytes
/// that are kept in memory.
pub const FILE_LIMIT: u64 = 1024 * 1024;

/// A handle to the log.
#[derive(Clone, Debug)]
pub struct ConsoleLog {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    tail: VecDeque<u8>,
    /// None after the first error.
    file: Option<File>,
    length: u64,
}

impl ConsoleLog {
    /// A log that goes to `file`, which is empty.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                tail: VecDeque::with_capacity(TAIL),
                file: Some(file),
                length: 0,
            })),
        }
    }

    /// The last bytes, `max` at most.
    #[must_use]
    pub fn tail(&self, max: usize) -> String {
        let mut state = self.lock();
        let bytes = state.tail.make_contiguous();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(max)..]).into_owned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn append(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(TAIL)..];
        let excess = (self.tail.len() + kept.len()).saturating_sub(TAIL);
        self.tail.drain(..excess);
        self.tail.extend(kept);
        if let Err(error) = self.append_to_file(kept) {
            tracing::warn!(%error, "the console's log ends here");
            self.file = None;
        }
    }

    fn append_to_file(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        if self.length + bytes.len() as u64 > FILE_LIMIT {
            file.set_len(0)?;
            file.rewind()?;
            // It ends with `bytes`.
            file.write_all(self.tail.make_contiguous())?;
            self.length = self.tail.len() as u64;
        } else {
            file.write_all(bytes)?;
            self.length += bytes.len() as u64;
        }
        Ok(())
    }
}

impl Write for ConsoleLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_tail_holds_the_last_bytes() {
        let mut log = ConsoleLog::new(tempfile::tempfile().unwrap());
        log.write_all(b"one\ntwo\n").unwrap();
        assert_eq!(log.tail(4), "two\n");
        assert_eq!(log.tail(100), "one\ntwo\n");
        log.write_all(&vec![b'x'; 3 * TAIL]).unwrap();
        log.write_all(b"end \xff").unwrap();
        let tail = log.tail(usize::MAX);
        assert!(tail.ends_with("end \u{fffd}"));
        assert_eq!(log.lock().tail.len(), TAIL);
    }

    #[test]
    fn the_file_stays_within_its_limit_and_ends_with_the_last_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = ConsoleLog::new(file.reopen().unwrap());
        for line in 0..20_000 {
            writeln!(log, "{line:0100}").unwrap();
            if line % 1000 == 0 {
                assert!(fs::metadata(file.path()).unwrap().len() <= FILE_LIMIT);
            }
        }
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(text.len() as u64 <= FILE_LIMIT);
        assert!(text.ends_with(&format!("{:0100}\n", 19_999)));
        assert!(text.len() > TAIL);
    }

    #[test]
    fn a_full_disk_ends_the_file_and_not_the_console() {
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut log = ConsoleLog::new(full);
        log.write_all(b"lost in the file").unwrap();
        assert_eq!(log.tail(100), "lost in the file");
    }
}
