//! What a reply changes in a drain.

use std::time::Duration;

use super::confirmation::{Confirmation, StillHolds, Verdict, still_holds};
use super::event::{DrainEvent, Events};
use super::outcome::OutcomeKind;
use super::stages::{Drain, HURRIED_REFUSED_RETRY, ListenerCheck, Stage};
use crate::envoy::error::{AdminError, AdminErrorKind};
use crate::envoy::{Call, CallResult, Health, Poll, Reply};
use crate::os::clock::Timestamp;

/// Refused calls in a row that make Envoy gone, and the time between them.
const MAX_REFUSALS: u32 = 3;
const REFUSED_RETRY: Duration = Duration::from_secs(1);

/// The pauses after the first failures to fail health checks; later ones are a check interval, but
/// no longer than that, since Envoy is in service.
const FAIL_BACKOFF: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];
const MAX_FAIL_BACKOFF: Duration = Duration::from_secs(10);

impl Drain {
    /// `responded_before`: whether Envoy has responded at this address since the sidecar's start;
    /// `awaited`: whether Envoy's own hook waits.
    pub(super) fn replied(
        &mut self,
        call: Call,
        result: &CallResult,
        responded_before: bool,
        awaited: bool,
        now: Timestamp,
        events: &mut Events,
    ) {
        if let Stage::ConfirmingOutcome(kind) = self.stage {
            self.confirm(kind, result, now, events);
            if !result.as_ref().is_err_and(AdminError::is_refusal) {
                return;
            }
        }
        if let Stage::Ending(outcome) = self.stage {
            // It was released while the call was under way.
            if let Ok(Reply::Stats(poll)) = result {
                self.last_poll = Some(self.as_it_counts(poll.clone()));
                self.polled_at = now;
                self.stage = Stage::Ending(self.outcome(outcome.kind));
            }
            return;
        }
        if matches!(self.stage, Stage::Failing { .. }) && call == Call::FailHealthChecks {
            self.set_deadline();
        }
        if result.as_ref().is_err_and(AdminError::is_refusal) {
            return self.refused(call, responded_before, awaited, now, events);
        }
        self.refusals = 0;
        if call == Call::ReadStats {
            self.counted = true;
            self.poll_took = now - self.called_at;
            self.was_polled(now);
        }
        if call == Call::ReadAccepted {
            return self.arrivals_counted(result, now, events);
        }
        // One for show leaves the drain its pace.
        if !matches!(call, Call::DrainListeners | Call::CheckListeners) && !self.watching {
            self.check_due = now + self.ready_interval();
        }
        match result {
            Err(_) if call == Call::DrainListeners => {
                // It holds nothing up: a client that is not reached is counted.
                self.listeners_due = Some(now + self.ready_interval());
            }
            Err(error) if call == Call::CheckListeners => {
                self.listeners_unknown(error, now, events);
            }
            Err(_) if call == Call::CheckReady => {}
            // That of a hurried drain, which tries to fail health checks at its own pace.
            Err(_) if call == Call::ReadStats && matches!(self.stage, Stage::Failing { .. }) => {}
            Err(_) => self.retry(now),
            Ok(Reply::HealthChecksFailed) => {
                let until = now + self.options.check_delay;
                let until = until.max(self.started + self.options.min_drain_duration);
                self.stage = Stage::CheckDelay { until };
                self.failed_at = Some(now);
                self.accepted.out_of_service(now);
                self.begin_quiet_period(now);
                // It may be another Envoy than before.
                self.listener_check = ListenerCheck::due(now);
                events.push(DrainEvent::OutOfService { first_poll_in: until - now });
            }
            // No listener of an Envoy that is starting listens yet, so none hides a connection.
            Ok(Reply::Ready(_)) if call == Call::CheckListeners => {
                self.envoy_starting = true;
                self.listener_check = None;
            }
            Ok(Reply::Ready(health)) => self.check(*health, now, events),
            Ok(Reply::Stats(poll)) => self.polled(poll.clone(), now, events),
            Ok(Reply::Listeners(hidden)) => {
                self.listener_check = None;
                self.may_hide = false;
                self.hidden = hidden.clone();
                events.push(DrainEvent::ListenersCompared(hidden.clone()));
                if self.hides_listeners() || hidden.arrivals {
                    self.arrivals_hidden(events);
                }
            }
            Ok(Reply::ListenersDraining) => {
                self.listeners_due = None;
                events.push(DrainEvent::ListenersDraining);
            }
            Ok(Reply::HealthChecksRestored | Reply::Accepted(_)) => {}
        }
    }

    /// The reply to a poll: the stage's own, or that of a hurried drain in another stage.
    fn polled(&mut self, poll: Poll, now: Timestamp, events: &mut Events) {
        let hidden = self.hides_listeners();
        let poll = self.as_it_counts(poll);
        // The gauge of an Envoy that is starting is as that of one whose health checks are failed.
        if poll.health != Health::Draining || !self.envoy_starting {
            self.check(poll.health, now, events);
        }
        let mut verdict = Verdict::Above;
        if self.stage == Stage::WaitingForConnections {
            let threshold = self.options.min_open_connections;
            verdict = self.confirmation.judge(&poll, self.options.wait_for, threshold, hidden);
            let interval = match verdict {
                // Envoy refreshes it every few seconds, whatever the interval between polls.
                Verdict::AwaitTotal => self.ready_interval(),
                Verdict::Contradicted(pause) => pause.min(self.interval()),
                _ => self.interval(),
            };
            self.call_due = self.next_poll(interval, now);
        }
        if let Verdict::PollAgain(pause) = verdict {
            self.call_due = now + self.pause(pause);
            return;
        }
        self.last_poll = Some(poll.clone());
        self.polled_at = now;
        self.accepted.polled(self.poll_took, now);
        events.push(DrainEvent::Polled(poll));
        if verdict == Verdict::AtThreshold && self.listener_check.is_none() {
            self.stage = Stage::Ending(self.outcome(OutcomeKind::Drained));
        }
    }

    /// The poll with the larger numbers that what is hidden demands.
    fn as_it_counts(&self, mut poll: Poll) -> Poll {
        let hidden = self.hides_listeners();
        if !self.subtracts() {
            // Connections of listeners without gauges were not added, and nothing shows which these are.
            poll = poll.without_subtraction();
        }
        if let Some(total) = poll.total.filter(|_| hidden) {
            poll.open = poll.open.max(total.connections);
        }
        if hidden || self.hidden.unsent.is_some() {
            // Which of a hidden listener's are idle is not known.
            poll.in_use = poll.open;
        }
        if let Some(prefix) = self.hidden.unsent.as_ref().filter(|_| poll.http() > 0) {
            poll.breakdown.requests_hidden.get_or_insert_with(|| prefix.clone());
        }
        poll
    }

    /// Ends as the drain just before has, if that still holds; else begins.
    fn confirm(
        &mut self,
        kind: OutcomeKind,
        result: &CallResult,
        now: Timestamp,
        events: &mut Events,
    ) {
        if let Ok(Reply::Stats(poll)) = result {
            self.last_poll = Some(poll.clone());
            self.polled_at = now;
        }
        let threshold = self.options.min_open_connections;
        let wait_for = self.options.wait_for;
        match still_holds(kind, wait_for, threshold, &mut self.confirmation, result) {
            StillHolds::Yes => self.stage = Stage::Ending(self.outcome(kind)),
            StillHolds::PollAgain(pause) => self.call_due = now + self.pause(pause),
            StillHolds::No | StillHolds::Unknown => {
                events.push(DrainEvent::OutcomeOutdated);
                self.confirmation = Confirmation::default();
                self.begin(now);
            }
        }
    }

    fn refused(
        &mut self,
        call: Call,
        responded_before: bool,
        awaited: bool,
        now: Timestamp,
        events: &mut Events,
    ) {
        self.refusals = self.refusals.saturating_add(1);
        let retry = if self.hurried { HURRIED_REFUSED_RETRY } else { REFUSED_RETRY };
        self.not_before = now + retry;
        self.accepted.due = self.counts_arrivals().then_some(self.not_before);
        self.quiet.restart();
        self.check_due = self.not_before;
        if call != Call::CheckReady {
            self.call_due = self.not_before;
        }
        // The next one that responds may be another Envoy.
        self.drain_listeners_at(self.not_before);
        self.confirmation = Confirmation::default();
        if awaited && matches!(self.stage, Stage::AwaitingEnvoyHook { .. }) {
            // It came too late for the pair, but the exec hook is still here.
            self.envoy_hook = true;
            self.enter_drain_delay(now);
        }
        if self.refusals < MAX_REFUSALS || matches!(self.stage, Stage::Ending(_)) {
            return;
        }
        if responded_before || !awaited {
            self.stage = Stage::Ending(self.outcome(OutcomeKind::EnvoyGone));
        } else if !std::mem::replace(&mut self.never_responded, true) {
            // Envoy's own hook runs only while Envoy's container does: the address is wrong.
            events.push(DrainEvent::NeverResponded);
        }
    }

    fn listeners_unknown(&mut self, error: &AdminError, now: Timestamp, events: &mut Events) {
        // An Envoy that responds otherwise does not show its listeners, however often it is asked.
        let may_change = matches!(error.kind, AdminErrorKind::Timeout | AdminErrorKind::Protocol);
        self.listener_check = self.listener_check.take().and_then(|check| {
            let tries_left = check.tries_left - 1;
            let at = now + self.ready_interval();
            (may_change && tries_left > 0).then_some(ListenerCheck { at, tries_left })
        });
        if self.listener_check.is_none() {
            self.may_hide = true;
            events.push(DrainEvent::ListenersNotCompared(error.clone()));
            self.arrivals_hidden(events);
        }
    }

    /// After a failed call of the stage, or a poll of a hurried drain.
    fn retry(&mut self, now: Timestamp) {
        self.confirmation = Confirmation::default();
        self.call_due = match &mut self.stage {
            Stage::Failing { attempts } => {
                let pause = FAIL_BACKOFF.get(*attempts).copied();
                *attempts += 1;
                let pause = pause.unwrap_or(self.interval().min(MAX_FAIL_BACKOFF));
                now + pause
            }
            _ => self.next_poll(self.interval(), now),
        };
    }

    /// Fails health checks again if they no longer are.
    fn check(&mut self, health: Health, now: Timestamp, events: &mut Events) {
        let was_starting = std::mem::replace(&mut self.envoy_starting, health == Health::Starting);
        if was_starting && !self.envoy_starting {
            // Its listeners have no gauges before they listen (measured).
            self.listener_check = ListenerCheck::due(now);
        }
        if was_starting || self.envoy_starting {
            self.quiet.restart();
        }
        // An Envoy that is starting has restarted. Failed once more it comes up DRAINING
        // (measured), and until then /ready says that it is starting.
        let in_service = health == Health::Live || health == Health::Starting && !was_starting;
        let reverted = in_service
            && matches!(self.stage, Stage::CheckDelay { .. } | Stage::WaitingForConnections);
        if reverted {
            self.drain_listeners_at(now);
            self.confirmation = Confirmation::default();
            self.enter_failing(now);
            events.push(DrainEvent::Reverted(health));
        }
    }
}
