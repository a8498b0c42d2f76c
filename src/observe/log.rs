//! The log: one line a record on stdout, as logfmt or JSON. Also the backend of the `log` facade,
//! through which libraries log.

use std::fmt::Write as _;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

pub use super::json::Value;
use super::json::{Object, is_unseen, quote};
use super::messages;
use crate::cli::LogFormat;
use crate::labels;
use crate::os::clock::Timestamp;
use crate::os::output::Lines;

labels! {
    /// How much a record matters.
    pub enum Level {
        /// The course of things.
        Info = "info",
        /// Something is odd; the program continues as it should.
        Warn = "warn",
        /// Something could not be done.
        Error = "error",
    }
}

/// One line of the log. Boxed, since it is handed on field by field.
#[derive(Debug, PartialEq, Eq)]
pub struct Record(Box<Content>);

/// What a [`Record`] holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Content {
    pub level: Level,
    /// One of [`messages`].
    pub message: &'static str,
    pub fields: Vec<(&'static str, Value)>,
}

impl Deref for Record {
    type Target = Content;
    fn deref(&self) -> &Content {
        &self.0
    }
}

impl Record {
    /// A record of the course of things.
    pub fn info(message: &'static str) -> Self {
        Self::new(Level::Info, message)
    }

    /// A record of something odd; the program continues as it should.
    pub fn warn(message: &'static str) -> Self {
        Self::new(Level::Warn, message)
    }

    /// A record of something that could not be done.
    pub fn error(message: &'static str) -> Self {
        Self::new(Level::Error, message)
    }

    fn new(level: Level, message: &'static str) -> Self {
        Self(Box::new(Content { level, message, fields: Vec::new() }))
    }

    /// The record with one more field, unless its value is [`Value::None`].
    pub fn with(self, name: &'static str, value: impl Into<Value>) -> Self {
        self.with_value(name, value.into())
    }

    // Inlined at each of its many calls, it would be 1 kB of the program.
    #[inline(never)]
    fn with_value(mut self, name: &'static str, value: Value) -> Self {
        if !matches!(value, Value::None) {
            self.0.fields.push((name, value));
        }
        self
    }

    /// Writes the record to stdout, if that takes it: a reader that stands still must not hold a
    /// drain up. The next record says how many were lost.
    pub fn emit(mut self) {
        if cfg!(loom) {
            return; // A model would write the same a million times.
        }
        let json = JSON.load(Ordering::Relaxed);
        let format = if json { LogFormat::Json } else { LogFormat::Text };
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.0.fields.push(("lines_lost_before", Value::Number(lost)));
        }
        let mut rendered = self.render(format, SystemTime::now());
        rendered.push('\n');
        if !LINES.write(rustix::stdio::stdout(), rendered.as_bytes()) {
            LOST.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }

    fn render(&self, format: LogFormat, time: SystemTime) -> String {
        let time = rfc3339(time);
        match format {
            LogFormat::Text => {
                let mut line = format!("time={time} level={} msg=", self.level.name());
                quote(&mut line, self.message);
                for (name, value) in &self.fields {
                    // Writing to a String does not fail.
                    let _ = write!(line, " {}=", key(name));
                    match value {
                        Value::Text(text) if is_plain(text) => line.push_str(text),
                        value => line.push_str(&value.json()),
                    }
                }
                line
            }
            LogFormat::Json => {
                let mut object = Object::default()
                    .with("time", time)
                    .with("level", self.level.name())
                    .with("msg", self.message);
                for (name, value) in &self.fields {
                    object.push(&key(name), value);
                }
                object.end()
            }
        }
    }
}

/// A time of day as the log has it.
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// The key of a field: an option's name, too, is in snake_case there.
fn key(name: &str) -> String {
    name.replace('-', "_")
}

/// For what others can cause very often: it is logged once in so many seconds, and counted.
#[derive(Debug, Default)]
pub struct RateLimit<const SECONDS: u64 = 60> {
    logged: Option<Timestamp>,
    unlogged: u64,
}

impl<const SECONDS: u64> RateLimit<SECONDS> {
    /// It has happened. If it is to be logged, how often it has since it was logged before.
    pub fn happened(&mut self, now: Timestamp) -> Option<u64> {
        self.unlogged += 1;
        if self.logged.is_some_and(|logged| now < logged + Duration::from_secs(SECONDS)) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }

    /// It has happened. Writes the record of it, with how often it has since one was written before,
    /// if it is to be logged.
    pub fn emit(&mut self, now: Timestamp, record: impl FnOnce() -> Record) {
        if let Some(times) = self.happened(now) {
            record().with("times", times).emit();
        }
    }

    /// Whether the latest was not logged.
    pub fn is_limiting(&self) -> bool {
        self.unlogged > 0
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.contains(|c: char| is_unseen(c) || c.is_whitespace() || c == '"' || c == '=')
}

static JSON: AtomicBool = AtomicBool::new(false);
static LOST: AtomicU64 = AtomicU64::new(0);
static LINES: Lines = Lines::new();

/// Sets the log of this process up: its format, and that libraries' warnings and panics are
/// records like everything else.
pub fn install(format: LogFormat) {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    if log::set_logger(&Libraries).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("no reason given");
        Record::error(messages::THREAD_PANICKED)
            .with("thread", thread.name().unwrap_or("unnamed"))
            .with("location", location)
            .with("reason", reason)
            .emit();
    }));
}

struct Libraries;

impl log::Log for Libraries {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        // tiny_http's one record says that its listener has ended, which is meant.
        metadata.level() <= log::Level::Warn && !metadata.target().starts_with("tiny_http")
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            Record::warn(messages::LIBRARY_WARNING)
                .with("library", record.target())
                .with("warning", record.args().to_string())
                .emit();
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn rendered(format: LogFormat) -> String {
        Record::warn("it is \"odd\"")
            .with("open-connections", 3)
            .with("took_seconds", Duration::from_micros(61_002_900))
            .with("plain", "a/b:c")
            .with("spaced", "a b")
            .with("pair", "a=b")
            .with("lines", "a\nb")
            .with("empty", "")
            .render(format, UNIX_EPOCH + Duration::from_millis(1_790_000_000_123))
    }

    #[test]
    fn a_record_of_text_quotes_what_would_break_it() {
        assert_eq!(
            rendered(LogFormat::Text),
            "time=2026-09-21T14:13:20.123Z level=warn msg=\"it is \\\"odd\\\"\" open_connections=3 took_seconds=61.002 plain=a/b:c \
             spaced=\"a b\" pair=\"a=b\" lines=\"a\\nb\" empty=\"\""
        );
    }

    #[test]
    fn a_record_of_json_keeps_numbers() {
        assert_eq!(
            rendered(LogFormat::Json),
            "{\"time\":\"2026-09-21T14:13:20.123Z\",\"level\":\"warn\",\"msg\":\"it is \\\"odd\\\"\",\
             \"open_connections\":3,\"took_seconds\":61.002,\"plain\":\"a/b:c\",\"spaced\":\"a b\",\"pair\":\"a=b\",\"lines\":\"a\\nb\",\
             \"empty\":\"\"}"
        );
    }

    #[test]
    fn what_happens_often_is_logged_once_a_minute_and_counted() {
        let mut limit = <RateLimit>::default();
        let logged: Vec<_> = [5, 6, 64, 65, 66, 200]
            .map(|s| limit.happened(Timestamp::from_boot(Duration::from_secs(s))))
            .into();
        assert_eq!(logged, [Some(1), None, None, Some(3), None, Some(2)]);
    }

    #[test]
    fn levels_are_shown() {
        for (line, level) in [
            (Record::info("x"), " level=info "),
            (Record::warn("x"), " level=warn "),
            (Record::error("x"), " level=error "),
        ] {
            assert!(line.render(LogFormat::Text, UNIX_EPOCH).contains(level));
        }
    }

    /// Set for the process that [`what_libraries_warn_of_becomes_a_record`] starts.
    const CHILD: &str = "LOG_OF_LIBRARIES";

    #[test]
    fn what_libraries_warn_of_becomes_a_record() {
        if std::env::var_os(CHILD).is_some() {
            install(LogFormat::Text);
            log::error!(target: "some_library", "no {}", "socket");
            log::warn!(target: "some_library", "it is odd");
            log::info!(target: "some_library", "listening");
            return;
        }
        // The log of a process goes to its stdout, past what cargo captures.
        let test = "observe::log::tests::what_libraries_warn_of_becomes_a_record";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let message = messages::LIBRARY_WARNING;
        let records = stdout.lines().filter_map(|line| line.split_once(" level=warn msg="));
        let records: Vec<_> = records.map(|(_, record)| record).collect();
        let expected = ["\"no socket\"", "\"it is odd\""]
            .map(|text| format!("\"{message}\" library=some_library warning={text}"));
        assert_eq!(records, expected, "what a library warns of is lost: {stdout}");
        assert!(!stdout.contains("listening"), "what is no warning is logged: {stdout}");
    }
}
