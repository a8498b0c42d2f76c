//! When a delay may end early: once no new connection has come for the quiet period. How long the others
//! go on sending is a guess otherwise.

use std::time::Duration;

use super::accepted::rate;
use super::event::{DrainEvent, Events};
use super::stages::{Drain, Stage};
use crate::cli::options::{MIN_CHECK_INTERVAL, WaitFor};
use crate::envoy::{Arrivals, CallResult, Reply};
use crate::labels;
use crate::os::clock::Timestamp;

/// Gaps between arrivals that are compared: fewer say nothing.
const RECENT: usize = 4;

/// Health checks do not come more often than this, all checkers together; clients may.
const MIN_CHECK_GAP: Duration = Duration::from_millis(500);

labels! {
    /// What can end early.
    pub enum Delay {
        /// `--drain-delay`, and `--health-check-failure-delay` behind it.
        DrainDelay = "drain_delay",
        /// `--check-delay`, and what is left of `--min-drain-duration`.
        CheckDelay = "check_delay",
    }
}

/// What has come in a delay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuietPeriod {
    /// When the delay began.
    pub began: Timestamp,
    /// Envoy's counters as last seen, and since when they stand still.
    seen: Option<Arrivals>,
    pub since: Option<Timestamp>,
    /// New connections and requests in this delay, and when the latest of these connections were
    /// noticed.
    pub new: u64,
    pub new_requests: u64,
    pub noticed: Option<Timestamp>,
    /// The time for each new connection, between two counts that noticed some: the latest of these. A
    /// balancer's health checks go on after all else has stopped.
    gaps: [Option<Duration>; RECENT],
    /// How often the period began again because a count was not to be had, or Envoy was starting.
    pub restarts: u32,
}

impl QuietPeriod {
    pub fn new(began: Timestamp) -> Self {
        let (seen, since, noticed, gaps) = (None, None, None, [None; RECENT]);
        Self { began, seen, since, new: 0, new_requests: 0, noticed, gaps, restarts: 0 }
    }

    /// A count was not to be had, or Envoy has restarted: what came meanwhile is unknown.
    pub fn restart(&mut self) {
        (self.seen, self.since) = (None, None);
        self.restarts += 1;
    }

    fn counted(&mut self, arrivals: Arrivals, now: Timestamp) {
        let Some(before) = self.seen.replace(arrivals) else {
            self.since = Some(now);
            return;
        };
        if before != arrivals {
            self.since = Some(now);
        }
        // An Envoy that has restarted counts anew.
        let requests = arrivals.requests.zip(before.requests);
        self.new_requests += requests.map_or(0, |(now, before)| now.saturating_sub(before));
        let new = arrivals.connections.saturating_sub(before.connections);
        if new == 0 {
            return;
        }
        self.new += new;
        if let Some(last) = self.noticed.replace(now) {
            let gap = (now - last) / u32::try_from(new).unwrap_or(u32::MAX);
            self.gaps.rotate_left(1);
            self.gaps[RECENT - 1] = Some(gap);
        }
    }

    /// Whether new connections come as regularly as a balancer's health checks, as far as counts that
    /// are `interval` apart can tell.
    pub fn looks_like_checks(&self, interval: Duration) -> bool {
        let (least, most) = (self.gaps.iter().min(), self.gaps.iter().max());
        let both = least.copied().flatten().zip(most.copied().flatten());
        both.is_some_and(|(least, most)| {
            // Each is noticed up to one interval late, so that two gaps differ by up to two.
            let tolerance = (2 * interval + interval / 4).min(most / 2);
            least >= MIN_CHECK_GAP && most - least <= tolerance
        })
    }

    /// New connections in 1000 s.
    pub fn rate(&self, now: Timestamp) -> Option<u64> {
        rate(self.new, now - self.began)
    }

    /// How long no new connection had come when that was last asked for.
    fn stood_still(&self, asked: Timestamp) -> Option<Duration> {
        self.since.map(|since| asked - since)
    }
}

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
        self.listener_check.is_none() && !self.hides_listeners() && !self.envoy_starting
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
        let new = self.accepted.replied(arrivals.map(|arrivals| arrivals.connections), took, now);
        if new > 0 {
            events.push(DrainEvent::NewConnections(new));
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
