//! The agent's log: one line for each `tracing` event, written to one sink.
//!
//! PID 1 logs to `/dev/kmsg`, where the kernel keeps the lines and shows only errors on the console (every character
//! there costs an exit from the VM). Helpers log into a pipe that their caller reads when they fail.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Writes events of `level` and more severe ones to `sink`, each as one line in one write.
pub struct LineLog {
    sink: File,
    level: Level,
    /// Put the severity before the line as the kernel's log reads it, `<3>`.
    kernel_prefix: bool,
}

impl LineLog {
    /// A log into `/dev/kmsg`.
    ///
    /// # Errors
    /// When that device cannot be opened.
    pub fn kernel() -> std::io::Result<Self> {
        let sink = File::options().write(true).open("/dev/kmsg")?;
        Ok(Self {
            sink,
            level: Level::INFO,
            kernel_prefix: true,
        })
    }

    /// A log of errors only, without prefix.
    pub fn errors_to(sink: File) -> Self {
        Self {
            sink,
            level: Level::ERROR,
            kernel_prefix: false,
        }
    }

    fn severity(level: Level) -> u8 {
        match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        }
    }
}

impl Subscriber for LineLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let level = *event.metadata().level();
        let text = if self.kernel_prefix {
            format!("<{}>hull-agent: {line}\n", Self::severity(level))
        } else {
            format!("{line}\n")
        };
        // A log that cannot be written has nowhere to say so.
        let _ = (&self.sink).write_all(text.as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event's message and its fields behind it, on one line.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.message.chars().chain(self.fields.chars()) {
            f.write_char(if character == '\n' { ' ' } else { character })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn an_event_is_one_line_and_lower_levels_are_left_out() {
        let mut file = tempfile::tempfile().unwrap();
        let log = LineLog::errors_to(file.try_clone().unwrap());
        tracing::subscriber::with_default(log, || {
            tracing::error!(path = "/a", code = 3, "it\nbroke");
            tracing::warn!("not this");
        });
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "it broke path=/a code=3\n");
    }
}
