//! When a delay may end early: once no new connection has come for the quiet period. How long the others
//! go on sending is a guess otherwise.

use std::time::Duration;

use super::event::{DrainEvent, Events};
use super::quiet::{Delay, QuietPeriod};
use super::stages::{Drain, Stage};
use crate::cli::options::{MIN_CHECK_INTERVAL, WaitFor};
use crate::envoy::{Arrivals, CallResult, Reply};
use crate::os::clock::Timestamp;

impl Drain {
    /// The quiet period that may end the present delay, and what has come in it.
    fn quiet_delay(&self) -> Option<(Delay, Timestamp)> {
        match self.stage {
            _ if self.options.quiet_period.is_zero() || self.hurried || self.quiet_unknown => None,
            Stage::DrainDelay { until } => Some((Delay::DrainDelay, until)),
            Stage::CheckDelay { until } => Some((Delay::CheckDelay, until)),
            _ => None,
        }
    }

    /// Whether the present delay may end early.
    pub(super) fn counts_arrivals(&self) -> bool {
        self.quiet_delay().is_some()
    }

    /// Whether Envoy shows what comes: not where a listener is hidden, or may be.
    fn shows_arrivals(&self) -> bool {
        self.listener_check.is_none()
            && !self.hides_listeners()
            && !self.hidden.arrivals
            && !self.envoy_starting
    }

    /// How often new connections are counted in a delay.
    pub fn quiet_interval(&self) -> Duration {
        (self.options.quiet_period / 2).min(self.options.check_interval).max(MIN_CHECK_INTERVAL)
    }

    /// A delay has begun: what came before does not say that others have stopped sending.
    pub(super) fn begin_quiet_period(&mut self, now: Timestamp) {
        self.quiet = QuietPeriod::new(now);
        if self.counts_arrivals() {
            self.accepted.due = Some(now);
        }
    }

    /// The reply to a count of new connections.
    pub(super) fn arrivals_counted(
        &mut self,
        result: &CallResult,
        now: Timestamp,
        events: &mut Events,
    ) {
        let took = now - self.called_at;
        // It keeps Envoy's main thread busy as a poll does.
        self.call_due = self.call_due.max(now + took);
        let arrivals = if let Ok(Reply::Accepted(arrivals)) = result { *arrivals } else { None };
        let connections = arrivals.map(|arrivals| arrivals.connections);
        match result {
            Err(_) => self.accepted.failed(),
            Ok(_) => match self.accepted.replied(connections, took, now) {
                0 => {}
                new => events.push(DrainEvent::NewConnections(new)),
            },
        }
        let Some((delay, until)) = self.quiet_delay() else { return };
        let interval = self.quiet_interval();
        match arrivals {
            Some(Arrivals { connections, requests }) => {
                let counts_requests = self.options.wait_for == WaitFor::Requests;
                if counts_requests && requests.is_none() {
                    return self.arrivals_hidden(events);
                }
                let requests = requests.filter(|_| counts_requests);
                self.quiet.counted(Arrivals { connections, requests }, now);
            }
            None if result.is_ok() => return self.arrivals_hidden(events),
            None => self.quiet.restart(),
        }
        let period = self.options.quiet_period;
        let is_quiet = self.quiet.stood_still(self.called_at).is_some_and(|still| still >= period);
        if is_quiet && self.shows_arrivals() && now < until {
            let (took, left) = (now - self.quiet.began, until - now);
            let new = self.quiet.new;
            events.push(DrainEvent::Quiet { delay, took, left, new });
            return self.end_delay(now);
        }
        // At the end of the period, if nothing comes before.
        let end = self.quiet.since.filter(|_| !is_quiet).map(|since| since + period);
        let next = self.called_at + interval;
        self.accepted.due = Some(end.map_or(next, |end| next.min(end)).max(now + took));
    }

    /// What comes cannot be seen, so that the delay has its whole length.
    pub(super) fn arrivals_hidden(&mut self, events: &mut Events) {
        if self.quiet_delay().is_some() {
            self.quiet_unknown = true;
            events.push(DrainEvent::ArrivalsHidden);
        }
    }

    /// The present delay has run its full length.
    pub(super) fn delay_ran_out(&self) -> Option<DrainEvent> {
        let (delay, _) = self.quiet_delay()?;
        let quiet = self.quiet.clone();
        let is_reason = quiet.new > 0 || quiet.new_requests > 0 || quiet.restarts > 0;
        is_reason.then_some(DrainEvent::NotQuiet { delay, quiet })
    }

    /// In a delay with a quiet period: how long no new connection has come.
    pub fn quiet_since(&self) -> Option<Timestamp> {
        self.quiet_delay().and(self.quiet.since)
    }
}
