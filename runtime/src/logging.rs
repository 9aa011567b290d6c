//! Where messages go: a file or standard error, in the form that callers of runc read (one line of text or of JSON
//! with `level`, `msg` and `time`), with the fields of an event beside them.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// What the global options of a command say about messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSettings {
    /// Appended to; standard error without one.
    pub path: Option<PathBuf>,
    /// Lines of JSON.
    pub json: bool,
    /// Messages of level debug too.
    pub debug: bool,
}

impl LogSettings {
    /// Makes them hold for this process.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn init(&self) -> io::Result<()> {
        let writer = match &self.path {
            Some(path) => BoxMakeWriter::new(Arc::new(open(path)?)),
            None => BoxMakeWriter::new(io::stderr),
        };
        self.init_writer(writer);
        Ok(())
    }

    /// Makes them hold for this process, with messages to `file` whatever their path is.
    pub fn init_to(&self, file: File) {
        self.init_writer(BoxMakeWriter::new(Arc::new(file)));
    }

    fn init_writer(&self, writer: BoxMakeWriter) {
        let level = match (self.debug, &self.path) {
            (true, _) => Level::DEBUG,
            (false, Some(_)) => Level::INFO,
            // Standard error may be the container's.
            (false, None) => Level::WARN,
        };
        // What libraries do is their own business, unless they fail.
        let targets = Targets::new()
            .with_default(Level::ERROR)
            .with_target("hull", level);
        let lines = tracing_subscriber::fmt::layer()
            .event_format(Lines { json: self.json })
            .with_writer(writer);
        tracing_subscriber::registry()
            .with(lines.with_filter(targets))
            .init();
    }
}

fn open(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
}

/// The form of a line.
struct Lines {
    json: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        if self.json {
            writeln!(writer, "{}", json_line(level, &time, fields))
        } else {
            writeln!(writer, "{}", text_line(level, &time, &fields))
        }
    }
}

fn json_line(level: &str, time: &str, fields: Fields) -> Value {
    let mut line = fields.values;
    line.insert("level".into(), level.into());
    line.insert("msg".into(), fields.message.into());
    line.insert("time".into(), time.into());
    Value::Object(line)
}

fn text_line(level: &str, time: &str, fields: &Fields) -> String {
    let mut line = format!("time={time:?} level={level} msg={:?}", fields.message);
    for (name, value) in &fields.values {
        line.push_str(&format!(" {name}={value}"));
    }
    line
}

/// An event's message, and its other fields.
#[derive(Default)]
struct Fields {
    message: String,
    values: Map<String, Value>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            (name, value) => {
                self.values.insert(name.into(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_callers_of_runc_read() {
        let fields = || Fields {
            message: "it \"broke\"\nbadly".into(),
            values: [("id".to_owned(), Value::from("c1"))].into_iter().collect(),
        };
        let line = json_line("error", "2026-01-01T00:00:00Z", fields()).to_string();
        assert!(!line.contains('\n'));
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["level"], "error");
        assert_eq!(read["msg"], "it \"broke\"\nbadly");
        assert_eq!(read["id"], "c1");
        assert_eq!(
            text_line("error", "T", &fields()),
            r#"time="T" level=error msg="it \"broke\"\nbadly" id="c1""#
        );
    }
}
