//! The log of a drain: maps events to records, and suppresses repeats.

use std::time::Duration;

use super::log::Record;
use super::messages;
use super::status::whole;
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
        let requested: Vec<String> = requested
            .pairs()
            .iter()
            .map(|(option, value)| format!("{}={value}", option.name()))
            .collect();
        let requested = requested.join(" ");
        self.last_record = now;
        let (DrainStart::Started(number), Some(drain)) = (start, machine.drain()) else {
            let ignored = Some(requested).filter(|requested| !requested.is_empty());
            let record = Record::info(messages::DRAIN_JOINED).with("drain", start.number());
            return vec![record.with("phase", machine.phase().name()).with("ignored", ignored)];
        };
        *self = Self { last_record: now, ..Self::default() };
        let options = &drain.options;
        let mut record = Record::info(messages::DRAIN_STARTED)
            .with("drain", number)
            .with("requested", requested);
        for (name, value) in options.settings() {
            record = record.with(name, value);
        }
        let first_poll = options.delay().saturating_add(options.check_delay);
        let first_poll = first_poll.max(options.min_drain_duration);
        let warning = match options.drain_timeout {
            Some(timeout) if timeout < options.delay() => messages::TIMEOUT_BEFORE_DRAIN_DELAY,
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
    pub fn reminder(&self, machine: &Machine) -> Option<Timestamp> {
        machine.drain().map(|_| self.last_record + REMINDER)
    }

    fn event(&mut self, event: &DrainEvent, machine: &Machine, records: &mut Vec<Record>) {
        let of_drain = |record: Record| record.with("drain", machine.number());
        let info = |message| of_drain(Record::info(message));
        let warn = |message| of_drain(Record::warn(message));
        let record = match event {
            DrainEvent::CallSucceeded => return records.extend(self.responds_again()),
            DrainEvent::CallFailed { call, error } => {
                return records.extend(self.call_failed(*call, error, machine));
            }
            DrainEvent::OutOfService { first_poll_in } => {
                info(messages::OUT_OF_SERVICE).with("first_poll_in", whole(*first_poll_in))
            }
            DrainEvent::ListenersDraining => info(messages::LISTENERS_DRAINING),
            DrainEvent::Reverted(Health::Starting) => warn(messages::ENVOY_RESTARTED),
            DrainEvent::Reverted(_) => warn(messages::ENVOY_LIVE_AGAIN),
            DrainEvent::Polled(poll) => {
                records.extend(self.hidden_stats(poll));
                if self.open.replace(poll.open) == Some(poll.open) {
                    return;
                }
                let drain = machine.drain();
                let threshold = drain.map_or(0, |drain| drain.options.min_open_connections);
                info(messages::OPEN_CONNECTIONS)
                    .with("open_connections", poll.open)
                    .with("threshold_connections", threshold)
            }
            DrainEvent::EnvoyHookWaits => info(messages::ENVOY_HOOK_WAITS),
            DrainEvent::EnvoyHookMissing { listeners_not_drained } => {
                let listeners = "not drained, which could not be undone";
                let listeners = listeners_not_drained.then_some(listeners);
                warn(messages::ENVOY_HOOK_MISSING).with("listeners", listeners)
            }
            DrainEvent::Ended(ended) => self.ended(ended),
            DrainEvent::ReadyForNextDrain => info(messages::READY_FOR_NEXT_DRAIN),
            DrainEvent::StartupCheckPassed(poll) => {
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
        let record = Record::info(messages::ENVOY_RESPONDS_AGAIN)
            .with("previous_error", self.error.take()?.text);
        Some(record.with("repeated", self.take_repeated()))
    }

    fn take_repeated(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.repeated)).filter(|repeated| *repeated > 0)
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
        if let Some(repeated) = self.take_repeated() {
            let previous = previous.map(|error| error.text);
            record = record.with("previous_error", previous).with("repeated", repeated);
        }
        Some(record)
    }

    /// Says once what cannot be seen.
    fn hidden_stats(&mut self, poll: &Poll) -> Option<Record> {
        let before = std::mem::replace(&mut self.coverage, poll.coverage);
        let hidden = messages::hidden_stats(poll.coverage);
        hidden.filter(|_| before != poll.coverage).map(Record::warn)
    }

    fn ended(&self, ended: &Ended) -> Record {
        let kind = ended.outcome.kind;
        let message = match kind {
            OutcomeKind::Drained => messages::DRAINED,
            OutcomeKind::TimedOut => messages::TIMED_OUT,
            OutcomeKind::EnvoyGone => messages::ENVOY_GONE,
            OutcomeKind::NoEnvoyHook => messages::NO_ENVOY_HOOK,
        };
        let record = if kind.gave_up() { Record::warn(message) } else { Record::info(message) };
        let hidden = self.coverage == StatsCoverage::HttpOnly;
        record
            .with("drain", ended.number)
            .with("outcome", kind.name())
            .with("open_connections", ended.outcome.open)
            .with("threshold_connections", ended.threshold)
            .with("took_seconds", ended.took)
            .with("not_counted", hidden.then_some("connections that are not HTTP"))
    }

    fn still_waiting(&self, machine: &Machine, now: Timestamp) -> Record {
        let drain = machine.drain();
        let open = drain.and_then(|drain| drain.last_poll).map(|poll| poll.open);
        let error = self.error.as_ref();
        Record::info(messages::STILL_WAITING)
            .with("drain", machine.number())
            .with("phase", machine.phase().name())
            .with("open_connections", open)
            .with("threshold_connections", drain.map(|drain| drain.options.min_open_connections))
            .with("elapsed_seconds", drain.map(|drain| now - drain.started))
            .with("error", error.map(|error| error.text.as_str()))
            .with("repeated", error.map(|_| self.repeated))
    }
}

#[cfg(test)]
mod tests;
