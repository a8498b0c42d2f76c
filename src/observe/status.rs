//! How things stand, for programs: JSON, and a line for a hook that waits.

use std::fmt::Write as _;
use std::time::Duration;

use super::counters::Counters;
use super::history::History;
use super::json::{Object, Value, array, seen};
use super::messages;
use crate::cli::duration;
use crate::cli::options::WaitFor;
use crate::drain::{Accepted, Drain, Ended, NextStep, Phase};
use crate::envoy::Poll;
use crate::envoy::stats::{Breakdown, Largest};
use crate::os::clock::Timestamp;

/// How things stand.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When that was, on both clocks.
    pub now: Timestamp,
    pub wall_now: Timestamp,
    pub phase: Phase,
    pub phase_since: Timestamp,
    /// The number of the latest drain; 0 before the first.
    pub drain: u64,
    /// The options that the latest drain was requested with.
    pub requested: String,
    /// The drain in progress.
    pub progress: Option<Progress>,
    /// Connections that may be open at the end of a drain, or what else it waits for.
    pub threshold: u64,
    pub wait_for: WaitFor,
    /// The latest drain that has ended, and when.
    pub last: Option<(Ended, Timestamp)>,
    /// What was open over the latest drain.
    pub history: History,
    /// Hooks that wait: Envoy's own, at the public port and at the control socket, and exec hooks.
    pub envoy_hooks: usize,
    pub exec_hooks: usize,
    pub counters: Counters,
    /// Envoy's admin interface.
    pub admin_address: String,
    pub worker_running: bool,
    /// What was last written to the file of `--injected-resource`, in hundredths.
    pub injected: Option<u8>,
}

/// What is shown of a drain in progress.
#[derive(Clone, Debug)]
pub struct Progress {
    pub started: Timestamp,
    pub out_of_service_since: Option<Timestamp>,
    /// The latest valid poll, and when it was made.
    pub last_poll: Option<(Poll, Timestamp)>,
    pub accepted: Accepted,
    /// In a delay with a quiet period: since when no new connection has come.
    pub quiet_since: Option<Timestamp>,
    pub next: Option<(NextStep, Timestamp)>,
    pub gives_up_at: Option<Timestamp>,
}

impl Progress {
    pub fn of(drain: &Drain) -> Self {
        Self {
            started: drain.started,
            out_of_service_since: drain.out_of_service_since(),
            last_poll: drain.last_poll.clone().map(|poll| (poll, drain.polled_at)),
            accepted: drain.accepted.clone(),
            quiet_since: drain.quiet_since(),
            next: drain.next_step(),
            gives_up_at: drain.gives_up_at(),
        }
    }
}

/// What was open at a poll.
pub(super) struct Count<'a> {
    pub open: u64,
    /// What of it holds the drain, requests in flight perhaps.
    pub holding: u64,
    pub breakdown: &'a Breakdown,
    pub at: Timestamp,
}

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Snapshot {
    /// The latest count of the drain in progress, or of the one that has just ended.
    pub(super) fn count(&self) -> Option<Count<'_>> {
        let (poll, at) = match (&self.progress, &self.last) {
            (Some(progress), _) => progress.last_poll.as_ref().map(|(poll, at)| (poll, *at))?,
            (None, Some((ended, at))) if self.phase == Phase::Ended => {
                let age = |ago: Duration| Timestamp::from_boot(at.since_boot().saturating_sub(ago));
                ended.last_poll.as_ref().map(|(poll, ago)| (poll, age(*ago)))?
            }
            _ => return None,
        };
        let holding = poll.holding(self.wait_for);
        Some(Count { open: poll.open, holding, breakdown: &poll.breakdown, at })
    }

    /// The new connections of the drain in progress, or of the one that has just ended.
    pub(super) fn accepted(&self) -> Option<&Accepted> {
        let ended = self.last.as_ref().filter(|_| self.phase == Phase::Ended);
        let ended = ended.map(|(ended, _)| &ended.accepted);
        let accepted = self.progress.as_ref().map(|progress| &progress.accepted).or(ended);
        accepted.filter(|accepted| accepted.first.is_some())
    }

    /// In a delay with a quiet period: how long no new connection has come.
    pub(super) fn quiet(&self) -> Option<Duration> {
        self.progress.as_ref().and_then(|progress| progress.quiet_since).map(|at| self.ago(at))
    }

    /// How long ago that was.
    pub(super) fn ago(&self, at: Timestamp) -> Duration {
        self.now - at
    }

    /// The same moment on the wall clock.
    pub(super) fn wall(&self, at: Timestamp) -> Timestamp {
        let later = at - self.now;
        let earlier = self.wall_now.since_boot().saturating_sub(self.now - at);
        Timestamp::from_boot(earlier) + later
    }

    /// How long the drain in progress has taken so far.
    pub(super) fn elapsed(&self) -> Option<Duration> {
        self.progress.as_ref().map(|progress| self.ago(progress.started))
    }

    pub(super) fn gives_up_at(&self) -> Option<Timestamp> {
        self.progress.as_ref().and_then(|progress| progress.gives_up_at)
    }

    /// What cannot be seen in Envoy's stats.
    pub(super) fn stats_hidden(&self) -> Option<String> {
        let Counters { coverage, hidden, .. } = &self.counters;
        let listeners = messages::hidden_listeners(hidden).into_iter();
        let listeners = listeners.map(|(message, names)| format!("{names}: {message}"));
        let family = messages::hidden_stats(*coverage).map(str::to_owned);
        let texts: Vec<_> = family.into_iter().chain(listeners).collect();
        Some(texts.join("; ")).filter(|text| !text.is_empty())
    }

    /// The status as one JSON object.
    pub fn json(&self) -> String {
        let last = self.last.as_ref().map(|(ended, at)| {
            let object = Object::default()
                .with("drain", ended.number)
                .with("outcome", ended.outcome.kind.name())
                .with("explanation", ended.outcome.explain())
                .with("open_connections", ended.outcome.open)
                .with("took_seconds", ended.took)
                .with("ended_seconds_ago", self.ago(*at));
            Value::Json(object.end())
        });
        let count = self.count();
        let kinds = count.as_ref().map(|count| {
            let kinds = count.breakdown.kinds.named().into_iter();
            let object =
                kinds.fold(Object::default(), |object, (kind, open)| object.with(kind, open));
            Value::Json(object.end())
        });
        let largest = |name, largest: &Largest| {
            let named = largest.named.iter();
            Value::Json(array(named.map(|(text, open)| {
                Object::default().with(name, text.as_str()).with("open_connections", *open).end()
            })))
        };
        let breakdown = count.as_ref().map(|count| count.breakdown);
        let accepted = self.accepted();
        let next = self.progress.as_ref().and_then(|progress| progress.next);
        let error = self.counters.error.as_ref();
        let object = Object::default()
            .with("version", VERSION)
            .with("time_seconds", self.wall_now.since_boot())
            .with("phase", self.phase.name())
            .with("phase_seconds", self.ago(self.phase_since))
            .with("drain", self.drain)
            .with("requested", self.requested.as_str())
            .with("elapsed_seconds", self.elapsed())
            .with("open_connections", count.as_ref().map(|count| count.open))
            .with("open_connections_age_seconds", count.as_ref().map(|count| self.ago(count.at)))
            .with("wait_for", self.wait_for.name())
            .with("holding", count.as_ref().map(|count| count.holding))
            .with("threshold_connections", self.threshold)
            .with("connections_by_kind", kinds)
            .with("listeners", breakdown.map(|all| largest("listener", &all.listeners)))
            .with("other_listeners", breakdown.map(|all| all.listeners.others))
            .with(
                "other_listeners_open_connections",
                breakdown.map(|all| all.listeners.others_open),
            )
            .with("http_prefixes", breakdown.map(|all| largest("prefix", &all.prefixes)))
            .with("requests_in_flight", breakdown.and_then(|all| all.requests))
            .with("udp_sessions", breakdown.map(|all| all.udp_sessions))
            .with("new_connections", accepted.map(|accepted| accepted.new))
            .with(
                "new_connections_per_second",
                accepted.and_then(Accepted::rate).map(Value::Thousandths),
            )
            .with(
                "new_connection_noticed_seconds_ago",
                accepted.and_then(|accepted| accepted.noticed).map(|at| self.ago(at)),
            )
            .with("quiet_seconds", self.quiet())
            .with(
                "injected_pressure",
                self.injected.map(|hundredths| Value::Thousandths(u64::from(hundredths) * 10)),
            )
            .with("next_step", next.map(|(step, _)| step.name()))
            .with("next_step_in_seconds", next.map(|(_, at)| at - self.now))
            .with("gives_up_in_seconds", self.gives_up_at().map(|at| at - self.now))
            .with("envoy_state", self.counters.envoy.name())
            .with("envoy_state_age_seconds", self.counters.envoy_seen.map(|at| self.ago(at)))
            .with("envoy_hooks", self.envoy_hooks as u64)
            .with("exec_hooks", self.exec_hooks as u64)
            .with("last_error", self.counters.last_error())
            .with("last_error_age_seconds", error.map(|error| self.ago(error.at)))
            .with("last_error_times", error.map(|error| error.times))
            .with("stats_hidden", self.stats_hidden())
            .with("last_drain", last)
            .with("admin_address", self.admin_address.as_str())
            .with("worker_running", Value::Json(self.worker_running.to_string()));
        object.end() + "\n"
    }

    /// The drain in one line, for a hook that waits. It changes only when something does.
    pub fn line(&self) -> String {
        let mut line = match self.count() {
            Some(Count { open, holding, .. }) => {
                let holds = match self.wait_for {
                    WaitFor::Connections => String::new(),
                    WaitFor::Requests => format!(", {holding} requests in flight or not HTTP"),
                };
                format!("{}, {open} open{holds}, threshold {}", self.phase.name(), self.threshold)
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
