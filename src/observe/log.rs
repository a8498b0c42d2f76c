//! The log: one line an event on stderr, as logfmt or JSON. Also the backend of the `log` facade,
//! through which the libraries speak.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::Deref;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cli::LogFormat;
use crate::observe::json::{Object, quote};
use crate::os::clock::Timestamp;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The course of things.
    Info,
    /// Something is odd, and the program goes on as it should.
    Warn,
    /// Something could not be done.
    Error,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string.
    Text(String),
    /// A number, which JSON shows as one.
    Number(u64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

/// One event. Boxed, since it is handed on field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record(Box<Event>);

/// What a [`Record`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// How much it matters.
    pub level: Level,
    /// What happened, without the values.
    pub text: String,
    /// The values.
    pub fields: Vec<(&'static str, Value)>,
}

impl Deref for Record {
    type Target = Event;
    fn deref(&self) -> &Event {
        &self.0
    }
}

impl Record {
    /// A line of the course of things.
    pub fn info(text: impl Into<String>) -> Self {
        Self::new(Level::Info, text.into())
    }

    /// A line about something odd.
    pub fn warn(text: impl Into<String>) -> Self {
        Self::new(Level::Warn, text.into())
    }

    /// A line about something that could not be done.
    pub fn error(text: impl Into<String>) -> Self {
        Self::new(Level::Error, text.into())
    }

    fn new(level: Level, text: String) -> Self {
        Self(Box::new(Event { level, text, fields: Vec::new() }))
    }

    /// The line with one more field.
    #[must_use]
    pub fn with(self, name: &'static str, value: impl Into<Value>) -> Self {
        self.with_value(name, value.into())
    }

    // Inlined at each of its many calls, it would be 1 kB of the program.
    #[inline(never)]
    fn with_value(mut self, name: &'static str, value: Value) -> Self {
        self.0.fields.push((name, value));
        self
    }

    /// Writes the line to stderr, if it takes it: a reader that has stopped must not stop a drain.
    /// How many lines were lost is told with the next one.
    pub fn emit(&self) {
        if cfg!(loom) {
            return; // A model would say the same a million times.
        }
        let stderr = std::io::stderr();
        let mut writable = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut writable, PollTimeout::ZERO) == Ok(0) {
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let json = JSON.load(Ordering::Relaxed);
        let format = if json { LogFormat::Json } else { LogFormat::Text };
        let mut rendered = match LOST.swap(0, Ordering::Relaxed) {
            0 => self.render(format, SystemTime::now()),
            lost => self.clone().with("lines-lost-before", lost).render(format, SystemTime::now()),
        };
        rendered.push('\n');
        // In one piece, so that threads do not mix theirs. There is nowhere to say that it failed.
        let _ = stderr.lock().write_all(rendered.as_bytes());
    }

    fn render(&self, format: LogFormat, time: SystemTime) -> String {
        let time = humantime::format_rfc3339_millis(time).to_string();
        match format {
            LogFormat::Text => {
                let mut line = format!("time={time} level={} msg=", self.level.name());
                quote(&mut line, &self.text);
                for (name, value) in &self.fields {
                    // Writing to a String does not fail.
                    let _ = write!(line, " {name}=");
                    match value {
                        Value::Number(number) => {
                            let _ = write!(line, "{number}");
                        }
                        Value::Text(text) if is_plain(text) => line.push_str(text),
                        Value::Text(text) => quote(&mut line, text),
                    }
                }
                line
            }
            LogFormat::Json => {
                let mut object = Object::new()
                    .text("time", &time)
                    .text("level", self.level.name())
                    .text("msg", &self.text);
                for (name, value) in &self.fields {
                    object = match value {
                        Value::Number(number) => object.number(name, Some(*number)),
                        Value::Text(text) => object.text(name, text),
                    };
                }
                object.end()
            }
        }
    }
}

/// Something that others can make happen very often, and that is told once a minute at most.
#[derive(Debug, Default)]
pub struct RateLimit {
    told: Option<Timestamp>,
    untold: u64,
}

impl RateLimit {
    const PAUSE: Duration = Duration::from_secs(60);

    /// It has happened; `now` is the reading of any one clock. If it is to be told, how often it
    /// has since it was told before.
    pub fn happened(&mut self, now: Timestamp) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now < told + Self::PAUSE) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| !c.is_control() && !c.is_whitespace() && c != '"' && c != '=')
}

static JSON: AtomicBool = AtomicBool::new(false);
static LOST: AtomicU64 = AtomicU64::new(0);

/// Takes the log of this process into hand: its format, the libraries' warnings, and panics,
/// which are one line like everything else.
pub fn install(format: LogFormat) {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    if log::set_logger(&Libraries).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("no reason given");
        Record::error("a thread panicked, which is a bug in this program")
            .with("thread", thread.name().unwrap_or("unnamed"))
            .with("place", place)
            .with("reason", reason)
            .emit();
    }));
}

struct Libraries;

impl log::Log for Libraries {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            Record::warn(record.args().to_string()).with("library", record.target()).emit();
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
            .with("open", 3)
            .with("plain", "a/b:c")
            .with("spaced", "a b")
            .with("pair", "a=b")
            .with("lines", "a\nb")
            .with("empty", "")
            .render(format, UNIX_EPOCH + Duration::from_millis(1_790_000_000_123))
    }

    #[test]
    fn a_line_of_text_quotes_what_would_break_it() {
        assert_eq!(
            rendered(LogFormat::Text),
            "time=2026-09-21T14:13:20.123Z level=warn msg=\"it is \\\"odd\\\"\" open=3 plain=a/b:c \
             spaced=\"a b\" pair=\"a=b\" lines=\"a\\nb\" empty=\"\""
        );
    }

    #[test]
    fn a_line_of_json_keeps_numbers() {
        assert_eq!(
            rendered(LogFormat::Json),
            "{\"time\":\"2026-09-21T14:13:20.123Z\",\"level\":\"warn\",\"msg\":\"it is \\\"odd\\\"\",\
             \"open\":3,\"plain\":\"a/b:c\",\"spaced\":\"a b\",\"pair\":\"a=b\",\"lines\":\"a\\nb\",\
             \"empty\":\"\"}"
        );
    }

    #[test]
    fn what_happens_often_is_told_once_a_minute_and_counted() {
        let mut seldom = RateLimit::default();
        let told: Vec<_> = [5, 6, 64, 65, 66, 200]
            .map(|s| seldom.happened(Timestamp::from_start(Duration::from_secs(s))))
            .into();
        assert_eq!(told, [Some(1), None, None, Some(3), None, Some(2)]);
    }

    #[test]
    fn levels_are_told_apart() {
        for (line, level) in [
            (Record::info("x"), " level=info "),
            (Record::warn("x"), " level=warn "),
            (Record::error("x"), " level=error "),
        ] {
            assert!(line.render(LogFormat::Text, UNIX_EPOCH).contains(level));
        }
    }
}
