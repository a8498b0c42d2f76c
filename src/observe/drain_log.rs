//! The log of a drain: maps events to records, and suppresses repeats.

use std::time::Duration;

use super::counters::EnvoyState;
use super::hints::Hints;
use super::json::Value;
use super::log::{RateLimit, Record};
use super::messages;
use super::status::whole;
use crate::cli::options::{Options, Overrides, WaitFor};
use crate::drain::{Accepted, Drain, DrainEvent, DrainStart, Ended, Machine, OutcomeKind, Phase};
use crate::envoy::error::{AdminError, AdminErrorKind};
use crate::envoy::stats::StatsCoverage;
use crate::envoy::{Call, Health, HiddenStats, Poll};
use crate::os::clock::Timestamp;

/// While a drain is in progress, the log is not silent for longer than this.
const REMINDER: Duration = Duration::from_secs(60);

/// What has been logged already.
#[derive(Debug, Default)]
pub struct DrainLog {
    /// The latest error of each call that has not succeeded since.
    errors: Vec<CallError>,
    /// Open connections, and what holds the drain, at the latest poll.
    counts: Option<(u64, u64)>,
    coverage: StatsCoverage,
    hidden: HiddenStats,
    total_hidden: bool,
    requests_hidden: bool,
    hints: Hints,
    /// Envoy's own state, which stands beside each phase.
    pub envoy: EnvoyState,
    /// An Envoy may come back in service again and again.
    reverts: RateLimit<10>,
    last_record: Timestamp,
}

/// An error that has been logged.
#[derive(Debug)]
struct CallError {
    call: Call,
    error: AdminError,
    /// How often it has come again since.
    repeated: u64,
}

impl CallError {
    fn repeated(&self) -> Option<u64> {
        Some(self.repeated).filter(|repeated| *repeated > 0)
    }
}

impl DrainLog {
    /// A request to drain: what was asked for, and what is in force.
    pub fn drain_started(
        &mut self,
        start: DrainStart,
        requested: &Overrides,
        machine: &Machine,
        now: Timestamp,
    ) -> Vec<Record> {
        // Either way it is in progress now.
        let Some(drain) = machine.drain() else { return Vec::new() };
        self.last_record = now;
        let changes = |own: &Options, whose| {
            Some(own.changes(requested, whose)).filter(|changes| !changes.is_empty())
        };
        let DrainStart::Started(number) = start else {
            let record = Record::info(messages::DRAIN_JOINED).with("drain", start.number());
            let record = record.with("phase", machine.phase().name());
            let record = record.with("envoy_state", self.envoy.name());
            return vec![record.with("ignored", changes(&drain.options, "drain"))];
        };
        let overrides = changes(machine.own(), "sidecar");
        *self = Self {
            last_record: now,
            envoy: self.envoy,
            hidden: std::mem::take(&mut self.hidden),
            ..Self::default()
        };
        let options = &drain.options;
        let mut record = Record::info(messages::DRAIN_STARTED)
            .with("drain", number)
            .with("requested", requested.list())
            .with("overrides", overrides);
        for (name, value) in options.settings() {
            record = record.with(name, value);
        }
        let mut records = vec![record];
        if let Some(warning) = messages::short_timeout(options) {
            records.push(Record::warn(warning).with("drain", number));
        }
        records
    }

    /// What a step has brought, and a reminder where nothing was logged for long.
    pub fn record(
        &mut self,
        events: &[DrainEvent],
        machine: &Machine,
        now: Timestamp,
    ) -> Vec<Record> {
        let mut records = Vec::new();
        for event in events {
            self.event(event, machine, now, &mut records);
        }
        if records.is_empty() && self.reminder(machine).is_some_and(|due| now >= due) {
            records.push(self.still_waiting(machine, now));
        }
        if !records.is_empty() {
            self.last_record = now;
        }
        records
    }

    /// When the log has a reminder to write, if nothing happens before.
    pub fn reminder(&self, machine: &Machine) -> Option<Timestamp> {
        machine.drain().map(|_| self.last_record + REMINDER)
    }

    fn event(
        &mut self,
        event: &DrainEvent,
        machine: &Machine,
        now: Timestamp,
        records: &mut Vec<Record>,
    ) {
        let of_drain = |record: Record| record.with("drain", machine.number());
        let info = |message| of_drain(Record::info(message));
        let warn = |message| of_drain(Record::warn(message));
        let record = match event {
            DrainEvent::CallSucceeded(call) => {
                return records.extend(self.responds_again(*call));
            }
            DrainEvent::CallFailed { call, error } => {
                return records.extend(self.call_failed(*call, error, machine));
            }
            DrainEvent::NewConnections(_) => return,
            DrainEvent::OutOfService { .. } if self.reverts.is_limiting() => return,
            DrainEvent::OutOfService { first_poll_in } => {
                info(messages::OUT_OF_SERVICE).with("first_poll_in", whole(*first_poll_in))
            }
            DrainEvent::Quiet { delay, took, left, new } => info(messages::QUIET)
                .with("delay", delay.name())
                .with("took_seconds", *took)
                .with("left_seconds", *left)
                .with("new_connections", *new),
            DrainEvent::NotQuiet { delay, quiet } => {
                let interval = machine.drain().map_or(Duration::ZERO, Drain::quiet_interval);
                let hint = messages::HINT_HEALTH_CHECKS;
                info(messages::NOT_QUIET)
                    .with("delay", delay.name())
                    .with("took_seconds", now - quiet.began)
                    .with("new_connections", quiet.new)
                    .with("new_connections_per_second", quiet.rate(now).map(Value::Thousandths))
                    .with("new_requests", Some(quiet.new_requests).filter(|new| *new > 0))
                    .with(
                        "latest_new_connection_ago",
                        quiet.noticed.map(|noticed| whole(now - noticed)),
                    )
                    .with("restarts", Some(u64::from(quiet.restarts)).filter(|times| *times > 0))
                    .with("hint", Some(hint).filter(|_| quiet.looks_like_checks(interval)))
            }
            DrainEvent::ArrivalsHidden => warn(messages::ARRIVALS_HIDDEN),
            DrainEvent::ListenersDraining => info(messages::LISTENERS_DRAINING),
            DrainEvent::ListenersCompared(hidden) => {
                return records.extend(self.listeners_compared(hidden));
            }
            DrainEvent::ListenersNotCompared(error) => {
                let record = Record::warn(messages::LISTENERS_NOT_COMPARED);
                record.with("error", error.text.as_str())
            }
            DrainEvent::Reverted(health) => {
                let Some(times) = self.reverts.happened(now) else { return };
                let restarted = *health == Health::Starting;
                let message =
                    if restarted { messages::ENVOY_RESTARTED } else { messages::ENVOY_LIVE_AGAIN };
                warn(message).with("times", Some(times).filter(|times| *times > 1))
            }
            DrainEvent::Polled(poll) => {
                records.extend(self.hidden_stats(poll));
                records.extend(self.total_hidden(poll, machine));
                let drain = machine.drain();
                if let Some(drain) = drain.filter(|_| waits(machine)) {
                    let hints = self.hints.polled(poll, drain, now).into_iter();
                    records.extend(hints.map(of_drain));
                }
                records.extend(self.requests_hidden(poll, machine).map(of_drain));
                let holding = drain.map_or(poll.open, |drain| drain.holding(poll));
                let counts = Some((poll.open, holding));
                if std::mem::replace(&mut self.counts, counts) == counts {
                    return;
                }
                let threshold = drain.map_or(0, |drain| drain.options.min_open_connections);
                info(messages::OPEN_CONNECTIONS)
                    .with("open_connections", poll.open)
                    .with("holding", Some(holding).filter(|_| waits_for_requests(machine)))
                    .with("threshold_connections", threshold)
                    .with("kinds", poll.breakdown.kinds.list())
                    .with("listeners", poll.breakdown.listeners.list())
            }
            DrainEvent::OutcomeOutdated => info(messages::OUTCOME_OUTDATED),
            DrainEvent::NeverResponded => {
                let address = machine.drain().map(|drain| drain.options.admin_address.to_string());
                warn(messages::ENVOY_NEVER_RESPONDED).with("admin_address", address)
            }
            DrainEvent::StartedBySignal => {
                records.push(warn(messages::STARTED_BY_SIGNAL));
                let start = DrainStart::Started(machine.number());
                let started = self.drain_started(start, &Overrides::default(), machine, now);
                return records.extend(started);
            }
            DrainEvent::EnvoyHookWaits => info(messages::ENVOY_HOOK_WAITS),
            DrainEvent::EnvoyHookMissing { listeners_not_drained } => {
                let listeners = "not drained, which could not be undone";
                let listeners = listeners_not_drained.then_some(listeners);
                warn(messages::ENVOY_HOOK_MISSING).with("listeners", listeners)
            }
            DrainEvent::Ended(ended) => self.ended(ended, now),
            DrainEvent::ReadyForNextDrain => info(messages::READY_FOR_NEXT_DRAIN),
            DrainEvent::StartupCheckPassed(poll) => {
                records.push(
                    Record::info(messages::ENVOY_RESPONDS)
                        .with("state", poll.health.name())
                        .with("open_connections", poll.open),
                );
                return records.extend(self.hidden_stats(poll));
            }
            DrainEvent::RestoreReplied(error) => {
                let record = match error {
                    None => Record::info(messages::ENVOY_RESTORED_BY_REQUEST),
                    Some(_) => Record::warn(messages::ENVOY_NOT_RESTORED_BY_REQUEST),
                };
                let draining = machine.listeners_draining() && error.is_none();
                record
                    .with("error", error.as_ref().map(|error| error.text.as_str()))
                    .with("hint", draining.then_some(messages::HINT_LISTENERS_STILL_DRAIN))
            }
            DrainEvent::Restored => Record::warn(messages::ENVOY_RESTORED),
            DrainEvent::NotRestored => Record::warn(messages::ENVOY_NOT_RESTORED),
            DrainEvent::StillOutOfService => Record::warn(messages::ENVOY_STILL_OUT_OF_SERVICE),
            DrainEvent::StillStarting => Record::info(messages::ENVOY_STILL_STARTING),
            DrainEvent::NeverReady => Record::warn(messages::ENVOY_NEVER_READY),
        };
        records.push(record);
    }

    fn responds_again(&mut self, call: Call) -> Option<Record> {
        // Others may still fail at each try.
        let ended = self.errors.iter().rposition(|error| call.ends_error_of(error.call))?;
        let ended = self.errors.remove(ended);
        self.errors.retain(|error| !call.ends_error_of(error.call));
        let record = Record::info(messages::ENVOY_RESPONDS_AGAIN);
        let repeated = ended.repeated();
        Some(record.with("previous_error", ended.error.text).with("repeated", repeated))
    }

    /// Names the listeners without gauges, unless that was logged before.
    fn listeners_compared(&mut self, hidden: &HiddenStats) -> Vec<Record> {
        let before = std::mem::replace(&mut self.hidden, hidden.clone());
        let before = messages::hidden_listeners(&before);
        let mut all = messages::hidden_listeners(hidden);
        all.retain(|one| !before.contains(one));
        let records = all.into_iter();
        records.map(|(message, names)| Record::warn(message).with("listeners", names)).collect()
    }

    fn call_failed(&mut self, call: Call, error: &AdminError, machine: &Machine) -> Option<Record> {
        // An event of its own says when it is tried no more.
        if call.is_optional() && !error.is_refusal() {
            return None;
        }
        // A poll may ask for /ready too, and meet what a check has met.
        if let Some(known) = self.errors.iter_mut().find(|known| known.error == *error) {
            known.repeated += 1;
            return None;
        }
        let known = self.errors.iter().position(|known| known.call == call);
        let previous = known.map(|index| self.errors.remove(index));
        self.errors.push(CallError { call, error: error.clone(), repeated: 0 });
        let mut record = match machine.drain() {
            Some(_) => Record::warn(messages::ENVOY_CALL_FAILED).with("drain", machine.number()),
            None if call == Call::ReadStats => Record::warn(messages::ENVOY_NOT_COUNTABLE),
            None => Record::info(messages::ENVOY_NOT_RESPONDING_YET),
        };
        record = record.with("error", error.text.as_str());
        if call == Call::FailHealthChecks && error.kind == AdminErrorKind::Status {
            record = record.with("hint", messages::HINT_READ_ONLY);
        }
        if let Some(repeated) = previous.as_ref().and_then(CallError::repeated) {
            let previous = previous.map(|previous| previous.error.text);
            record = record.with("previous_error", previous).with("repeated", repeated);
        }
        Some(record)
    }

    /// Says once in a drain that nothing can count the connections it waits for.
    fn total_hidden(&mut self, poll: &Poll, machine: &Machine) -> Option<Record> {
        let hidden = waits(machine) && !self.hidden.listeners.is_empty() && poll.total.is_none();
        if !hidden || std::mem::replace(&mut self.total_hidden, true) {
            return None;
        }
        Some(Record::warn(messages::TOTAL_HIDDEN).with("drain", machine.number()))
    }

    /// Says once in a drain that connections hold it because their requests are not shown.
    fn requests_hidden(&mut self, poll: &Poll, machine: &Machine) -> Option<Record> {
        let prefix = poll.breakdown.requests_hidden.as_ref()?;
        let holds = waits(machine) && waits_for_requests(machine);
        if !holds || std::mem::replace(&mut self.requests_hidden, true) {
            return None;
        }
        Some(Record::warn(messages::REQUESTS_HIDDEN).with("http_prefix", prefix.as_str()))
    }

    /// Says once what cannot be seen.
    fn hidden_stats(&mut self, poll: &Poll) -> Option<Record> {
        let before = std::mem::replace(&mut self.coverage, poll.coverage);
        let hidden = messages::hidden_stats(poll.coverage);
        hidden.filter(|_| before != poll.coverage).map(Record::warn)
    }

    fn ended(&self, ended: &Ended, now: Timestamp) -> Record {
        let kind = ended.outcome.kind;
        let message = match kind {
            OutcomeKind::Drained => messages::DRAINED,
            OutcomeKind::TimedOut => messages::TIMED_OUT,
            OutcomeKind::Released => messages::RELEASED,
            OutcomeKind::EnvoyGone => messages::ENVOY_GONE,
            OutcomeKind::NoEnvoyHook => messages::NO_ENVOY_HOOK,
        };
        let open = ended.outcome.open;
        let hint = match (kind, ended.outcome.holding) {
            (OutcomeKind::EnvoyGone, _) if !ended.envoy_hook => Some(messages::HINT_ENVOY_STOPPED),
            (OutcomeKind::EnvoyGone, Some(1..)) => Some(messages::HINT_CONNECTIONS_CUT),
            _ => None,
        };
        let warns = kind.gave_up() || hint.is_some();
        let record = if warns { Record::warn(message) } else { Record::info(message) };
        let not_counted = match self.coverage {
            StatsCoverage::HttpOnly => Some("connections that are not HTTP".to_owned()),
            _ => None,
        };
        let hidden = [&*self.hidden.listeners, &*self.hidden.uncounted].concat().join(", ");
        let hidden = Some(hidden).filter(|names| !names.is_empty());
        // What the connections were that are cut now.
        let polled = ended.last_poll.as_ref().filter(|_| kind != OutcomeKind::NoEnvoyHook);
        let breakdown = polled.map(|(poll, _)| &poll.breakdown);
        let record = record
            .with("drain", ended.number)
            .with("outcome", kind.name())
            .with("open_connections", open)
            .with("holding", ended.outcome.holding.filter(|holding| Some(*holding) != open))
            .with("threshold_connections", ended.threshold)
            .with("took_seconds", ended.took)
            .with("kinds", breakdown.and_then(|all| all.kinds.list()))
            .with("listeners", breakdown.and_then(|all| all.listeners.list()))
            .with("http_prefixes", breakdown.and_then(|all| all.prefixes.list()));
        with_new_connections(record, Some(&ended.accepted), now)
            .with("not_counted", not_counted)
            .with("listeners_without_gauges", hidden)
            .with("hint", hint)
    }

    fn still_waiting(&self, machine: &Machine, now: Timestamp) -> Record {
        let drain = machine.drain();
        let poll = drain.and_then(|drain| drain.last_poll.as_ref());
        let (open, breakdown) = (poll.map(|poll| poll.open), poll.map(|poll| &poll.breakdown));
        let accepted = drain.map(|drain| &drain.accepted);
        let error = self.errors.last();
        let record = Record::info(messages::STILL_WAITING)
            .with("drain", machine.number())
            .with("phase", machine.phase().name())
            .with("envoy_state", self.envoy.name())
            .with("open_connections", open)
            .with(
                "holding",
                drain
                    .zip(poll)
                    .filter(|_| waits_for_requests(machine))
                    .map(|(drain, poll)| drain.holding(poll)),
            )
            .with("threshold_connections", drain.map(|drain| drain.options.min_open_connections))
            .with("elapsed_seconds", drain.map(|drain| now - drain.started))
            .with("gives_up_in", drain.and_then(Drain::gives_up_at).map(|at| whole(at - now)))
            .with("kinds", breakdown.and_then(|all| all.kinds.list()))
            .with("listeners", breakdown.and_then(|all| all.listeners.list()))
            .with("http_prefixes", breakdown.and_then(|all| all.prefixes.list()));
        with_new_connections(record, accepted, now)
            .with("error", error.map(|error| error.error.text.as_str()))
            .with("repeated", error.map(|error| error.repeated))
    }
}

/// What came though Envoy was out of service, as far as that was counted.
fn with_new_connections(record: Record, accepted: Option<&Accepted>, now: Timestamp) -> Record {
    let Some(accepted) = accepted.filter(|accepted| accepted.first.is_some()) else {
        return record;
    };
    record
        .with("new_connections", accepted.new)
        .with(
            "new_connections_per_second",
            accepted.rate().filter(|rate| *rate > 0).map(Value::Thousandths),
        )
        .with("latest_new_connection_ago", accepted.noticed.map(|at| whole(now - at)))
}

fn waits_for_requests(machine: &Machine) -> bool {
    machine.drain().is_some_and(|drain| drain.options.wait_for == WaitFor::Requests)
}

fn waits(machine: &Machine) -> bool {
    machine.phase() == Phase::WaitingForConnections
}

#[cfg(test)]
mod tests;
