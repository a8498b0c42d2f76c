//! What the log says of a drain: a table from what happened to records, and what keeps an event
//! that repeats from being logged twice.

use std::time::Duration;

use super::log::Record;
use super::messages;
use crate::cli::duration;
use crate::cli::options::Overrides;
use crate::drain::{DrainEvent, DrainStart, Ended, Machine, OutcomeKind};
use crate::envoy::error::AdminError;
use crate::envoy::stats::StatsCoverage;
use crate::envoy::{Call, Health, Poll};
use crate::os::clock::Timestamp;

/// While a drain is in progress, the log is not silent for longer than this.
const REMINDER: Duration = Duration::from_secs(60);

/// What has been logged already.
#[derive(Debug, Default)]
pub struct DrainLog {
    error: Option<AdminError>,
    /// How often the error has come again since it was logged.
    repeated: u64,
    open: Option<u64>,
    coverage: StatsCoverage,
    last_record: Timestamp,
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
        let requested: Vec<String> =
            requested.pairs().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let requested = requested.join(" ");
        self.last_record = now;
        let (DrainStart::Started(number), Some(drain)) = (start, machine.drain()) else {
            let record = Record::info(messages::DRAIN_JOINED)
                .with("drain", start.number())
                .with("phase", machine.phase().name());
            let nothing_ignored = requested.is_empty();
            return vec![if nothing_ignored { record } else { record.with("ignored", requested) }];
        };
        *self = Self { last_record: now, ..Self::default() };
        let options = drain.options();
        let mut record = Record::info(messages::DRAIN_STARTED)
            .with("drain", number)
            .with("requested", requested);
        for (name, value) in options.settings() {
            record = record.with(name, value);
        }
        let first_poll = options.delay().saturating_add(options.check_delay);
        let first_poll = first_poll.max(options.min_drain_duration);
        let warning = match options.drain_timeout {
            Some(timeout) if timeout <= options.delay() && !timeout.is_zero() => {
                messages::TIMEOUT_BEFORE_DRAIN_DELAY
            }
            Some(timeout) if timeout <= first_poll => messages::TIMEOUT_BEFORE_FIRST_POLL,
            _ => return vec![record],
        };
        vec![record, Record::warn(warning).with("drain", number)]
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
            self.event(event, machine, &mut records);
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
    #[must_use]
    pub fn reminder(&self, machine: &Machine) -> Option<Timestamp> {
        machine.drain().map(|_| self.last_record + REMINDER)
    }

    fn event(&mut self, event: &DrainEvent, machine: &Machine, records: &mut Vec<Record>) {
        let of_drain = |record: Record| record.with("drain", machine.number());
        let info = |message| of_drain(Record::info(message));
        let warn = |message| of_drain(Record::warn(message));
        let record = match event {
            DrainEvent::Responded => return records.extend(self.responds_again()),
            DrainEvent::CallFailed { call, error } => {
                return records.extend(self.call_failed(*call, error, machine));
            }
            DrainEvent::OutOfService { first_poll_in } => {
                let delay = duration::format(to_millis(*first_poll_in));
                info(messages::OUT_OF_SERVICE).with("first_poll_in", delay)
            }
            DrainEvent::ListenersDraining => info(messages::LISTENERS_DRAINING),
            DrainEvent::Reverted(Health::Starting) => warn(messages::ENVOY_RESTARTED),
            DrainEvent::Reverted(Health::Live | Health::Draining) => {
                warn(messages::ENVOY_LIVE_AGAIN)
            }
            DrainEvent::Polled(poll) => {
                records.extend(self.hidden_stats(poll));
                if self.open.replace(poll.open) == Some(poll.open) {
                    return;
                }
                let drain = machine.drain();
                let threshold = drain.map_or(0, |drain| drain.options().min_open_connections);
                info(messages::OPEN_CONNECTIONS)
                    .with("open_connections", poll.open)
                    .with("threshold_connections", threshold)
            }
            DrainEvent::EnvoyHookWaits => info(messages::ENVOY_HOOK_WAITS),
            DrainEvent::EnvoyHookMissing { listeners_not_drained: false } => {
                warn(messages::ENVOY_HOOK_MISSING)
            }
            DrainEvent::EnvoyHookMissing { listeners_not_drained: true } => {
                warn(messages::ENVOY_HOOK_MISSING)
                    .with("listeners", "not drained, which could not be undone")
            }
            DrainEvent::Ended(ended) => self.ended(ended),
            DrainEvent::ReadyForNextDrain => info(messages::READY_FOR_NEXT_DRAIN),
            DrainEvent::EnvoyResponds(poll) => {
                records.push(
                    Record::info(messages::ENVOY_RESPONDS)
                        .with("state", poll.health.name())
                        .with("open_connections", poll.open),
                );
                return records.extend(self.hidden_stats(poll));
            }
            DrainEvent::Restored => Record::warn(messages::ENVOY_RESTORED),
            DrainEvent::NotRestored => Record::warn(messages::ENVOY_NOT_RESTORED),
            DrainEvent::StillOutOfService => Record::warn(messages::ENVOY_STILL_OUT_OF_SERVICE),
            DrainEvent::NeverReady => Record::warn(messages::ENVOY_NEVER_READY),
        };
        records.push(record);
    }

    fn responds_again(&mut self) -> Option<Record> {
        let error = self.error.take()?;
        let record =
            Record::info(messages::ENVOY_RESPONDS_AGAIN).with("previous_error", error.text);
        let repeated = std::mem::take(&mut self.repeated);
        Some(if repeated > 0 { record.with("repeated", repeated) } else { record })
    }

    fn call_failed(&mut self, call: Call, error: &AdminError, machine: &Machine) -> Option<Record> {
        if self.error.as_ref() == Some(error) {
            self.repeated += 1;
            return None;
        }
        let mut record = match machine.drain() {
            Some(_) => Record::warn(messages::ENVOY_CALL_FAILED).with("drain", machine.number()),
            None if call == Call::ReadStats => Record::warn(messages::ENVOY_NOT_COUNTABLE),
            None => Record::info(messages::ENVOY_NOT_RESPONDING_YET),
        };
        record = record.with("error", error.text.as_str());
        let previous = self.error.replace(error.clone());
        let repeated = std::mem::take(&mut self.repeated);
        Some(match previous {
            Some(previous) if repeated > 0 => {
                record.with("previous_error", previous.text).with("repeated", repeated)
            }
            _ => record,
        })
    }

    /// Says once what cannot be seen.
    fn hidden_stats(&mut self, poll: &Poll) -> Option<Record> {
        let before = std::mem::replace(&mut self.coverage, poll.coverage);
        (before != poll.coverage)
            .then(|| messages::hidden_stats(poll.coverage))
            .flatten()
            .map(Record::warn)
    }

    fn ended(&self, ended: &Ended) -> Record {
        let kind = ended.outcome.kind();
        let message = match kind {
            OutcomeKind::Drained => messages::DRAINED,
            OutcomeKind::TimedOut => messages::TIMED_OUT,
            OutcomeKind::EnvoyGone => messages::ENVOY_GONE,
            OutcomeKind::NoEnvoyHook => messages::NO_ENVOY_HOOK,
        };
        let record = if kind.gave_up() { Record::warn(message) } else { Record::info(message) };
        let mut record = record.with("drain", ended.number).with("outcome", kind.name());
        if let Some(open) = ended.outcome.open() {
            record = record.with("open_connections", open);
        }
        record =
            record.with("threshold_connections", ended.threshold).with("took_seconds", ended.took);
        if self.coverage == StatsCoverage::HttpOnly {
            record = record.with("not_counted", "connections that are not HTTP");
        }
        record
    }

    fn still_waiting(&self, machine: &Machine, now: Timestamp) -> Record {
        let mut record = Record::info(messages::STILL_WAITING)
            .with("drain", machine.number())
            .with("phase", machine.phase().name());
        if let Some(drain) = machine.drain() {
            if let Some(poll) = drain.last_poll() {
                record = record.with("open_connections", poll.open);
            }
            record = record
                .with("threshold_connections", drain.options().min_open_connections)
                .with("elapsed_seconds", now - drain.started());
        }
        if let Some(error) = &self.error {
            record = record.with("error", error.text.as_str()).with("repeated", self.repeated);
        }
        record
    }
}

/// No reader wants the nanoseconds of a drain.
fn to_millis(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
