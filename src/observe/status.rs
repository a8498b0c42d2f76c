//! How things stand, for programs and for people: JSON, a line, a short page.

use std::fmt::Write as _;
use std::time::Duration;

use super::counters::Counters;
use super::json::{Object, Value, seen};
use super::messages;
use crate::cli::duration;
use crate::drain::{Ended, Phase};
use crate::route::PageStyle;

/// How things stand.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub phase: Phase,
    /// The number of the latest drain; 0 before the first.
    pub drain: u64,
    /// Open connections at the latest poll of the drain in progress.
    pub open: Option<u64>,
    /// Connections that may be open at the end of a drain.
    pub threshold: u64,
    /// How long the drain in progress has taken so far.
    pub elapsed: Option<Duration>,
    /// The latest drain that has ended.
    pub last: Option<Ended>,
    /// Envoy's hooks that wait, at the public port and at the control socket.
    pub envoy_hooks: usize,
    pub counters: Counters,
    /// Envoy's admin interface.
    pub admin_address: String,
    pub worker_running: bool,
}

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Snapshot {
    /// Open connections: of the drain in progress, or at the end of the latest.
    pub(super) fn open_connections(&self) -> Option<u64> {
        match (self.phase, &self.last) {
            (Phase::Ended, Some(ended)) => ended.outcome.open,
            _ => self.open,
        }
    }

    /// What cannot be seen in Envoy's stats.
    fn stats_hidden(&self) -> Option<String> {
        let Counters { coverage, hidden, .. } = &self.counters;
        let listeners = messages::hidden_listeners(hidden)
            .map(|message| format!("{}: {message}", hidden.names.join(", ")));
        let family = messages::hidden_stats(*coverage).map(str::to_owned);
        let texts: Vec<_> = family.into_iter().chain(listeners).collect();
        Some(texts.join("; ")).filter(|text| !text.is_empty())
    }

    /// The status as one JSON object.
    pub fn json(&self) -> String {
        let last = self.last.as_ref().map(|ended| {
            let object = Object::default()
                .with("drain", ended.number)
                .with("outcome", ended.outcome.kind.name())
                .with("explanation", ended.outcome.explain())
                .with("took_seconds", ended.took);
            Value::Json(object.end())
        });
        let object = Object::default()
            .with("version", VERSION)
            .with("phase", self.phase.name())
            .with("drain", self.drain)
            .with("open_connections", self.open_connections())
            .with("threshold_connections", self.threshold)
            .with("elapsed_seconds", self.elapsed)
            .with("envoy_hooks", self.envoy_hooks as u64)
            .with("last_error", self.counters.last_error())
            .with("stats_hidden", self.stats_hidden())
            .with("last_drain", last)
            .with("admin_address", self.admin_address.as_str())
            .with("worker_running", Value::Json(self.worker_running.to_string()));
        object.end() + "\n"
    }

    /// The drain in one line, for a hook that waits. It changes only when something does.
    pub fn line(&self) -> String {
        let mut line = match self.open_connections() {
            Some(open) => {
                format!("{}, {open} open, threshold {}", self.phase.name(), self.threshold)
            }
            None => format!("{}, open connections not counted yet", self.phase.name()),
        };
        // Writing to a String does not fail.
        if self.envoy_hooks > 0 {
            let _ = write!(line, ", {} waiting on /shutdown", self.envoy_hooks);
        }
        if let Some(error) = self.counters.last_error() {
            let _ = write!(line, "; {error}");
        }
        seen(&line) + "\n"
    }

    /// The status for people.
    pub fn page(&self, _: PageStyle) -> String {
        let phase = match (self.phase, self.elapsed) {
            (Phase::Idle, _) => "idle (no drain)".to_owned(),
            (phase, Some(elapsed)) => {
                format!("{} (drain {}, for {})", phase.name(), self.drain, whole(elapsed))
            }
            (phase, None) => format!("{} (drain {})", phase.name(), self.drain),
        };
        let connections = self.open_connections().map_or_else(
            || "not counted yet".to_owned(),
            |open| format!("{open} open, threshold {}", self.threshold),
        );
        let mut rows = vec![("phase", phase)];
        if self.phase != Phase::Idle {
            rows.push(("connections", connections));
        }
        rows.push(("envoy hooks", self.envoy_hooks.to_string()));
        if let Some(ended) = &self.last {
            let took = whole(ended.took);
            let text = format!("drain {}, {took}: {}", ended.number, ended.outcome.explain());
            rows.push(("last drain", text));
        }
        rows.push(("envoy", self.admin_address.clone()));
        rows.extend(self.counters.last_error().map(|error| ("last error", error.to_owned())));
        rows.extend(self.stats_hidden().map(|text| ("stats hidden", text)));
        if !self.worker_running {
            rows.push(("worker", "down; it is being restarted".to_owned()));
        }
        rows.iter().fold(String::new(), |page, (name, value)| {
            page + &format!("{:<13}{}\n", format!("{name}: "), seen(value))
        })
    }
}

/// A duration in whole seconds, or, below one, in milliseconds.
pub fn whole(duration: Duration) -> String {
    duration::format(match duration.as_secs() {
        0 => Duration::from_millis(duration.subsec_millis().into()),
        seconds => Duration::from_secs(seconds),
    })
}

#[cfg(test)]
pub(super) mod tests;
