//! How things stand, for programs and for people: JSON, Prometheus text, a line, a short page.

use std::fmt::Write as _;
use std::time::Duration;

use crate::cli::duration;
use crate::drain::{Ended, Outcome, Phase};
use crate::envoy::error::AdminErrorKind;
use crate::envoy::stats::StatsCoverage;
use crate::observe::json::Object;
use crate::route::{PublicRoute, Status};

/// What has happened since the sidecar's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Polls of Envoy's stats, failed ones included.
    pub polls: u64,
    /// Failed polls, by [`AdminErrorKind`].
    pub poll_errors: [u64; AdminErrorKind::ALL.len()],
    /// Ended drains, by [`Outcome::index`].
    pub drains: [u64; Outcome::NAMES.len()],
    /// Answers at the public port, by [`PublicRoute`] (the last row is for no route) and [`Status`].
    pub requests: [[u64; Status::ALL.len()]; PublicRoute::ALL.len() + 1],
    /// Connections to the public port that had to give way to others.
    pub refused: u64,
}

/// How things stand.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Where the drain stands.
    pub phase: Phase,
    /// The number of the latest drain; 0 before the first.
    pub drain: u64,
    /// Open connections at the latest poll of the drain that goes on.
    pub open: Option<u64>,
    /// Connections that may be open at the end.
    pub threshold: u64,
    /// How long the drain has been going on.
    pub elapsed: Option<Duration>,
    /// The latest drain that has ended.
    pub last: Option<Ended>,
    /// Why the latest call to Envoy failed, if it did.
    pub last_error: Option<String>,
    /// What can be counted.
    pub visible: StatsCoverage,
    /// Envoy's hooks that wait, at the public port and at the control socket.
    pub waiters: usize,
    /// What has happened so far.
    pub counters: Counters,
    /// Envoy's admin interface.
    pub admin_address: String,
    /// Whether the worker is at work.
    pub working: bool,
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Snapshot {
    /// Open connections: of the drain that goes on, or at the end of the latest.
    fn open_connections(&self) -> Option<u64> {
        match (self.phase, &self.last) {
            (Phase::Ended, Some(ended)) => match ended.outcome {
                Outcome::Drained { open } => Some(open),
                Outcome::TimedOut { open } => open,
                Outcome::EnvoyGone => Some(0),
                Outcome::NoEnvoyHook => None,
            },
            _ => self.open,
        }
    }

    fn duration(&self) -> Option<Duration> {
        self.elapsed.or(self.last.as_ref().map(|ended| ended.took))
    }

    /// The status as one JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        let last = self.last.as_ref().map(|ended| {
            Object::new()
                .number("drain", Some(ended.number))
                .text("outcome", ended.outcome.name())
                .text("explanation", &ended.outcome.explain())
                .raw("took_seconds", &seconds(ended.took))
                .end()
        });
        let elapsed = self.elapsed.map(seconds);
        let object = Object::new()
            .text("version", VERSION)
            .text("phase", self.phase.name())
            .number("drain", Some(self.drain))
            .number("open_connections", self.open_connections())
            .number("threshold", Some(self.threshold))
            .raw("elapsed_seconds", elapsed.as_deref().unwrap_or("null"))
            .number("waiters", Some(self.waiters as u64))
            .optional("last_error", self.last_error.as_deref())
            .optional("not_counted", self.visible.explain())
            .raw("outcome", last.as_deref().unwrap_or("null"))
            .text("admin_address", &self.admin_address)
            .raw("working", if self.working { "true" } else { "false" });
        object.end() + "\n"
    }

    /// The drain in one line, for a hook that waits. It changes only when something does.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = match self.open_connections() {
            Some(open) => format!("{}, {open} open, {} may be", self.phase.name(), self.threshold),
            None => format!("{}, open connections not counted yet", self.phase.name()),
        };
        // Writing to a String does not fail.
        if self.waiters > 0 {
            let _ = write!(line, ", {} waiting", self.waiters);
        }
        if let Some(error) = &self.last_error {
            let _ = write!(line, "; {error}");
        }
        line.push('\n');
        line
    }

    /// The status for people.
    #[must_use]
    pub fn page(&self) -> String {
        let phase = match (self.phase, self.elapsed) {
            (Phase::Serving, _) => "serving (no drain)".to_owned(),
            (phase, Some(elapsed)) => {
                format!("{} (drain {}, for {})", phase.name(), self.drain, whole(elapsed))
            }
            (phase, None) => format!("{} (drain {})", phase.name(), self.drain),
        };
        let connections = self.open_connections().map_or_else(
            || "not counted yet".to_owned(),
            |open| format!("{open} open, {} may be", self.threshold),
        );
        let mut rows = vec![("phase", phase)];
        if self.phase != Phase::Serving {
            rows.push(("connections", connections));
        }
        rows.push(("waiting", self.waiters.to_string()));
        if let Some(ended) = &self.last {
            let took = whole(ended.took);
            let text = format!("drain {}, {took}: {}", ended.number, ended.outcome.explain());
            rows.push(("last drain", text));
        }
        rows.push(("envoy", self.admin_address.clone()));
        rows.extend(self.last_error.clone().map(|error| ("last error", error)));
        rows.extend(self.visible.explain().map(|text| ("not counted", text.to_owned())));
        if !self.working {
            rows.push(("worker", "down; it is being started again".to_owned()));
        }
        rows.iter().fold(String::new(), |page, (name, value)| {
            page + &format!("{:<13}{value}\n", format!("{name}:"))
        })
    }

    /// The metrics in Prometheus' text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut out = Metrics(String::new());
        out.family("build_info", "gauge", "The version of the program; always 1.");
        out.labelled("build_info", &[("version", VERSION)], 1);
        out.family("phase", "gauge", "Where the drain stands: 1 for the phase, 0 for the others.");
        for phase in Phase::ALL {
            out.labelled("phase", &[("phase", phase.name())], (phase == self.phase).into());
        }
        out.family(
            "open_connections",
            "gauge",
            "Downstream connections open at the latest poll of a drain.",
        );
        if let Some(open) = self.open_connections() {
            out.sample("open_connections", open);
        }
        out.family(
            "threshold_connections",
            "gauge",
            "Downstream connections that may be open when a drain ends.",
        );
        out.sample("threshold_connections", self.threshold);
        out.family(
            "drain_duration_seconds",
            "gauge",
            "How long the drain has been going on, or how long the latest took.",
        );
        if let Some(duration) = self.duration() {
            out.line("drain_duration_seconds", &[], &seconds(duration));
        }
        out.family("polls_total", "counter", "Polls of Envoy's stats, failed ones included.");
        out.sample("polls_total", self.counters.polls);
        out.family("poll_errors_total", "counter", "Failed polls of Envoy's stats.");
        for (kind, count) in AdminErrorKind::ALL.iter().zip(self.counters.poll_errors) {
            out.labelled("poll_errors_total", &[("kind", kind.name())], count);
        }
        out.family("drains_total", "counter", "Drains that have ended.");
        for (name, count) in Outcome::NAMES.iter().zip(self.counters.drains) {
            out.labelled("drains_total", &[("outcome", name)], count);
        }
        out.family("waiters", "gauge", "Requests that wait for the end of a drain.");
        out.sample("waiters", self.waiters as u64);
        out.family("requests_total", "counter", "Requests answered at the public port.");
        let routes = PublicRoute::ALL.map(PublicRoute::name).into_iter().chain(["none"]);
        for (route, row) in routes.zip(self.counters.requests) {
            for (status, count) in Status::ALL.into_iter().zip(row) {
                // A series of what there never was would be most of the page.
                if count > 0 || (status == Status::Ok && route != "none") {
                    let labels = [("route", route), ("code", status.code())];
                    out.labelled("requests_total", &labels, count);
                }
            }
        }
        out.family(
            "refused_total",
            "counter",
            "Connections to the public port that had to give way to others.",
        );
        out.sample("refused_total", self.counters.refused);
        out.0
    }
}

struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail; so below.
        let _ = writeln!(
            self.0,
            "# HELP envoy_shutdown_{name} {help}\n# TYPE envoy_shutdown_{name} {kind}"
        );
    }

    fn sample(&mut self, name: &str, value: u64) {
        self.labelled(name, &[], value);
    }

    fn labelled(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.line(name, labels, &value.to_string());
    }

    /// None of the labels' values has anything to be escaped.
    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        let _ = write!(self.0, "envoy_shutdown_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }
}

fn seconds(duration: Duration) -> String {
    format!("{}.{:03}", duration.as_secs(), duration.subsec_millis())
}

/// A duration in whole seconds, or, below one, in milliseconds.
#[must_use]
pub fn whole(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    duration::format(Duration::from_millis(if millis < 1000 {
        millis
    } else {
        millis / 1000 * 1000
    }))
}

#[cfg(test)]
mod tests;
