//! A drain in progress: whatever is due first is done first.

use std::time::Duration;

use super::accepted::Accepted;
use super::confirmation::Confirmation;
use super::event::{Action, DrainEvent, Events};
use super::outcome::{Outcome, OutcomeKind, Phase};
use super::quiet::QuietPeriod;
use crate::cli::options::{Options, WaitFor};
use crate::envoy::{Call, HiddenStats, Poll};
use crate::labels;
use crate::os::clock::Timestamp;

/// The kubelet starts both hooks within 80 ms (measured); on a busy node they may be further apart.
pub const HOOK_PAIRING_WINDOW: Duration = Duration::from_secs(3);

/// Neither a revert nor Envoy's end must stay unseen for longer than this.
pub(super) const MAX_READY_INTERVAL: Duration = Duration::from_secs(2);

/// A signal in a drain mostly means that the grace period is over, and the kubelet kills 2 s later.
/// Until then Envoy is polled this often, and Envoy's end is known after three refusals.
pub(super) const HURRIED_INTERVAL: Duration = Duration::from_millis(200);
pub(super) const HURRIED_REFUSED_RETRY: Duration = Duration::from_millis(100);

/// While a delay is watched, connections are counted this often, but Envoy rests so many times as long
/// as a poll takes, and its end is close when less than this is left.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const WATCH_REST: u32 = 9;
const WATCH_MARGIN: Duration = Duration::from_secs(2);

/// Tries to find hidden listeners. A call that fails so often is not needed: most Envoys hide none.
const MAX_LISTENER_CHECKS: u32 = 3;

/// A drain in progress.
#[derive(Clone, Debug)]
pub struct Drain {
    pub options: Options,
    pub started: Timestamp,
    pub(super) stage: Stage,
    /// When the stage's own call is due, if it has one; when Envoy's state is to be checked in any
    /// case; and when the latest call was made.
    pub(super) call_due: Timestamp,
    pub(super) check_due: Timestamp,
    pub(super) called_at: Timestamp,
    /// After a refused call, the next one is made no earlier.
    pub(super) not_before: Timestamp,
    /// When health checks were last failed.
    pub(super) failed_at: Option<Timestamp>,
    /// When the drain gives up. Not set while Envoy's own hook is awaited, nor before the first try
    /// to fail health checks.
    pub(super) deadline: Option<Timestamp>,
    /// When Envoy's listeners are to be drained, at the earliest.
    pub(super) listeners_due: Option<Timestamp>,
    pub(super) listeners_earliest: Timestamp,
    /// When the hooks can no longer be a pair, `None` once reported; and whether they are one.
    pub(super) pairing_known: Option<Timestamp>,
    pub(super) envoy_hook: bool,
    /// Whether it has waited at any time in the drain.
    pub(super) envoy_hook_seen: bool,
    /// Refused calls in a row.
    pub(super) refusals: u32,
    /// Whether it was reported that Envoy has never responded at this address.
    pub(super) never_responded: bool,
    /// Whether Envoy was last seen starting, which says nothing about its health checks.
    pub(super) envoy_starting: bool,
    /// A signal has come while this drain was in progress.
    pub(super) hurried: bool,
    /// An operator ends it, once there was a try to fail health checks.
    pub(super) released: bool,
    /// Envoy is to leave service: the drain delay has begun.
    pub(super) has_begun: bool,
    /// Whether connections were counted, or that was tried. In a delay it is, for the number alone: if the grace period ends
    /// there, Envoy mostly does before another poll (6 of 8 times on a cluster), and what was cut would
    /// not be known.
    pub(super) counted: bool,
    pub(super) listener_check: Option<ListenerCheck>,
    /// What was last found out of hidden listeners.
    pub(super) hidden: HiddenStats,
    /// It could not be found out.
    pub(super) may_hide: bool,
    pub(super) confirmation: Confirmation,
    /// The latest valid poll that holds: not one that must be confirmed first; and when it was made.
    pub last_poll: Option<Poll>,
    pub polled_at: Timestamp,
    pub poll_took: Duration,
    pub accepted: Accepted,
    /// What comes in the present delay, and whether that was found to be hidden.
    pub(super) quiet: QuietPeriod,
    pub(super) quiet_unknown: bool,
    /// Whether a client of the control socket wants connections counted in a delay, where they are not
    /// otherwise; and when they may be counted for that.
    pub(super) watched: bool,
    /// Whether the latest call is made for that.
    pub(super) watching: bool,
    pub(super) watch_due: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A drain that ended just before is confirmed, or else this one begins.
    ConfirmingOutcome(OutcomeKind),
    AwaitingEnvoyHook {
        until: Timestamp,
    },
    DrainDelay {
        until: Timestamp,
    },
    Failing {
        attempts: usize,
    },
    CheckDelay {
        until: Timestamp,
    },
    WaitingForConnections,
    Ending(Outcome),
}

/// The check for hidden listeners. The drain does not end as drained while it is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListenerCheck {
    pub(super) at: Timestamp,
    pub(super) tries_left: u32,
}

impl ListenerCheck {
    pub(super) fn due(at: Timestamp) -> Option<Self> {
        Some(Self { at, tries_left: MAX_LISTENER_CHECKS })
    }
}

labels! {
    /// What a drain does next.
    pub enum NextStep {
        /// Unless Envoy's own hook comes.
        LeaveInService = "leave_in_service",
        FailHealthChecks = "fail_health_checks",
        FirstPoll = "first_poll",
        Poll = "poll",
    }
}

/// What can be due.
#[derive(Clone, Copy)]
enum Due {
    EndOfStage,
    Deadline,
    Call(Call),
    /// A poll for show.
    Watch,
}

impl Drain {
    /// `hidden`: as far as that is known already; `ended`: how a drain ended just before, which may
    /// still hold.
    pub(super) fn new(
        options: Options,
        envoy_hook: bool,
        hidden: HiddenStats,
        ended: Option<OutcomeKind>,
        now: Timestamp,
    ) -> Self {
        let mut drain = Self {
            call_due: now,
            check_due: now,
            started: now,
            stage: Stage::Failing { attempts: 0 },
            called_at: now,
            not_before: now,
            failed_at: None,
            deadline: None,
            listeners_due: None,
            listeners_earliest: now + options.drain_delay,
            pairing_known: Some(now + HOOK_PAIRING_WINDOW),
            envoy_hook,
            envoy_hook_seen: envoy_hook,
            refusals: 0,
            never_responded: false,
            envoy_starting: false,
            hurried: false,
            released: false,
            has_begun: false,
            counted: false,
            listener_check: ListenerCheck::due(now),
            hidden,
            may_hide: false,
            confirmation: Confirmation::default(),
            last_poll: None,
            polled_at: now,
            poll_took: Duration::ZERO,
            accepted: Accepted::default(),
            quiet: QuietPeriod::new(now),
            quiet_unknown: false,
            watched: false,
            watching: false,
            watch_due: now,
            options,
        };
        drain.drain_listeners_at(now);
        match ended {
            Some(kind) => drain.stage = Stage::ConfirmingOutcome(kind),
            None => drain.begin(now),
        }
        drain
    }

    /// The first stage of a drain that has something to do.
    pub(super) fn begin(&mut self, now: Timestamp) {
        if self.envoy_hook || !self.options.require_envoy_hook {
            self.check_due = now + self.ready_interval();
            self.enter_drain_delay(now);
        } else if self.released {
            self.stage = Stage::Ending(self.outcome(OutcomeKind::Released));
        } else {
            // At once: an Envoy that has ended is found out before the hook is given up.
            self.check_due = now;
            let until = self.started + HOOK_PAIRING_WINDOW;
            self.stage = Stage::AwaitingEnvoyHook { until };
        }
    }

    /// Envoy's own hook has come, or a client that waits as it does. Returns whether a step is due.
    pub(super) fn waiter_arrived(&mut self, is_first: bool, now: Timestamp) -> bool {
        self.envoy_hook_seen = true;
        let is_awaited = matches!(self.stage, Stage::AwaitingEnvoyHook { .. });
        // A drain that must know first whether Envoy has ended still awaits it.
        let extended = is_awaited && self.refusals > 0;
        let in_time = extended || now < self.started + HOOK_PAIRING_WINDOW;
        let pairs = !self.envoy_hook && in_time;
        self.envoy_hook |= pairs;
        if is_awaited && self.envoy_hook {
            self.enter_drain_delay(now);
        }
        pairs || (is_first && self.listeners_due.is_some())
    }

    /// A signal has come: what can still be known is to be known soon.
    pub(super) fn hurry(&mut self, now: Timestamp) {
        self.hurried = true;
        self.check_due = now;
        self.not_before = self.not_before.min(now + HURRIED_REFUSED_RETRY);
        match self.stage {
            Stage::WaitingForConnections => self.call_due = now,
            Stage::ConfirmingOutcome(_) => {
                self.call_due = self.call_due.min(now + HURRIED_INTERVAL)
            }
            Stage::Failing { .. } => self.call_due = self.call_due.min(self.fail_again_at(now)),
            _ => {}
        }
    }

    /// This end, with what was open at the last valid poll.
    pub(super) fn outcome(&self, kind: OutcomeKind) -> Outcome {
        Outcome::of(kind, self.last_poll.as_ref(), self.options.wait_for)
    }

    #[cfg(test)]
    pub fn open(&self) -> Option<u64> {
        self.last_poll.as_ref().map(|poll| poll.open)
    }

    /// What a poll shows that holds this drain.
    pub fn holding(&self, poll: &Poll) -> u64 {
        poll.holding(self.options.wait_for)
    }

    /// Ends the drain as its timeout would. Returns whether a step is due: not where it ends already.
    pub(super) fn release(&mut self) -> bool {
        match self.stage {
            Stage::Ending(_) => return false,
            // One try to fail health checks is owed, so that clients close before Envoy ends.
            Stage::DrainDelay { .. } => {
                self.released = true;
                self.set_deadline();
            }
            Stage::Failing { attempts: 0 } | Stage::ConfirmingOutcome(_) => self.released = true,
            _ => self.stage = Stage::Ending(self.outcome(OutcomeKind::Released)),
        }
        true
    }

    /// A client of the control socket wants to see the drain. Returns whether a step is due.
    pub(super) fn watch(&mut self) -> bool {
        !std::mem::replace(&mut self.watched, true) && self.is_delayed()
    }

    /// A poll has been made.
    pub(super) fn was_polled(&mut self, now: Timestamp) {
        self.watched = false;
        self.watch_due = (self.called_at + WATCH_INTERVAL).max(now + WATCH_REST * self.poll_took);
    }

    fn is_delayed(&self) -> bool {
        matches!(self.stage, Stage::DrainDelay { .. } | Stage::CheckDelay { .. })
    }

    /// When the drain gives up at the latest.
    pub fn gives_up_at(&self) -> Option<Timestamp> {
        let timeout = self.options.drain_timeout.map(|timeout| self.started + timeout);
        self.deadline.or(timeout)
    }

    /// What happens next, unless a reply changes it, and when.
    pub fn next_step(&self) -> Option<(NextStep, Timestamp)> {
        Some(match self.stage {
            Stage::AwaitingEnvoyHook { until } => (NextStep::LeaveInService, until),
            Stage::DrainDelay { until } => (NextStep::FailHealthChecks, until),
            Stage::Failing { .. } => (NextStep::FailHealthChecks, self.call_due),
            Stage::CheckDelay { until } => (NextStep::FirstPoll, until),
            Stage::WaitingForConnections => (NextStep::Poll, self.call_due),
            Stage::ConfirmingOutcome(_) | Stage::Ending(_) => return None,
        })
    }

    /// When Envoy was taken out of service.
    pub fn out_of_service_since(&self) -> Option<Timestamp> {
        self.failed_at
    }

    /// Does what is due first until that is a call, or nothing is due.
    pub(super) fn next(&mut self, awaited: bool, now: Timestamp, events: &mut Events) -> Action {
        if self.pairing_known.take_if(|at| *at <= now).is_some() {
            events.extend(self.pairing());
        }
        loop {
            if let Stage::Ending(outcome) = self.stage {
                return Action::Finish(outcome);
            }
            let (at, due) = self.earliest(awaited, now);
            if now < at {
                return Action::SleepUntil(self.pairing_known.map_or(at, |known| at.min(known)));
            }
            match due {
                Due::EndOfStage => {
                    events.extend(self.delay_ran_out());
                    self.end_stage(awaited, now);
                }
                Due::Deadline if matches!(self.stage, Stage::DrainDelay { .. }) => {
                    self.end_stage(awaited, now);
                }
                Due::Deadline => {
                    let kind =
                        if self.released { OutcomeKind::Released } else { OutcomeKind::TimedOut };
                    self.stage = Stage::Ending(self.outcome(kind));
                }
                Due::Watch => {
                    self.watching = true;
                    self.called_at = now;
                    return Action::Call(Call::ReadStats);
                }
                Due::Call(call) => {
                    self.watching = false;
                    self.accepted.due.take_if(|_| call == Call::ReadAccepted);
                    self.called_at = now;
                    return Action::Call(call);
                }
            }
        }
    }

    fn earliest(&self, awaited: bool, now: Timestamp) -> (Timestamp, Due) {
        // The stage's end, its own call, and whether listeners may be drained in it.
        let (end, own_call, may_drain_listeners) = match self.stage {
            // Whether that has ended or is starting must be known first.
            Stage::AwaitingEnvoyHook { .. } if self.refusals > 0 => (None, None, false),
            Stage::AwaitingEnvoyHook { until } => (Some(until), None, false),
            Stage::DrainDelay { until } => {
                (Some(until), None, !self.options.health_check_failure_delay.is_zero())
            }
            Stage::Failing { .. } => (None, Some(Call::FailHealthChecks), false),
            Stage::CheckDelay { until } => (Some(until), None, true),
            Stage::ConfirmingOutcome(_) => (None, Some(Call::ReadStats), false),
            Stage::WaitingForConnections | Stage::Ending(_) => (None, Some(Call::ReadStats), true),
        };
        let is_settled =
            matches!(self.stage, Stage::CheckDelay { .. } | Stage::WaitingForConnections);
        let compares_listeners = is_settled || self.counts_arrivals();
        // A call takes time that a drain whose time is over does not have.
        let is_over = self.deadline.is_some_and(|deadline| deadline <= now);
        let no_earlier = |at: Timestamp| at.max(self.not_before);
        let drain_listeners =
            self.listeners_due.filter(|_| awaited && may_drain_listeners && !is_over);
        let check_listeners = self.listener_check.filter(|_| compares_listeners && !is_over);
        let check_listeners = check_listeners.map(|check| no_earlier(check.at));
        let own_call = own_call.map(|call| (no_earlier(self.call_due).max(now), Due::Call(call)));
        let is_delayed = self.is_delayed();
        let counts = self.hurried || (is_delayed && !self.counted);
        // Not just before the end of the delay: a call that hangs would put off what follows.
        let watched =
            end.filter(|end| self.watched && is_delayed && !is_over && now + WATCH_MARGIN < *end);
        let watched = watched.map(|_| (no_earlier(self.watch_due), Due::Watch));
        let accepted = self.accepted.due.filter(|_| !self.hurried && !is_over);
        let accepted = accepted.map(|at| (no_earlier(at), Due::Call(Call::ReadAccepted)));
        let check = if counts { Call::ReadStats } else { Call::CheckReady };
        // The poll that confirms an outcome shows Envoy's state as well.
        let check = (!self.confirms_outcome())
            .then(|| (no_earlier(self.check_due).max(now), Due::Call(check)));
        // Of those due at the same time the first: a timeout that ends with a delay does not keep
        // health checks from being failed, and what is due already comes before a call, however long
        // that has been due.
        let mut first = (Timestamp::MAX, Due::Deadline);
        for candidate in [
            end.map(|at| (at, Due::EndOfStage)),
            self.deadline.map(|at| (at, Due::Deadline)),
            drain_listeners.map(|at| (no_earlier(at), Due::Call(Call::DrainListeners))),
            check_listeners.map(|at| (at, Due::Call(Call::CheckListeners))),
            own_call,
            check,
            watched,
            accepted,
        ] {
            if let Some(candidate) = candidate.filter(|candidate| candidate.0 < first.0) {
                first = candidate;
            }
        }
        first
    }

    /// Whether both hooks came, as in a deletion, which the sidecar cannot see otherwise. With a
    /// required hook missing, the outcome says it.
    fn pairing(&self) -> Option<DrainEvent> {
        if self.envoy_hook {
            return Some(DrainEvent::EnvoyHookWaits);
        }
        let listeners_not_drained = self.listeners_due.is_some();
        let missing = DrainEvent::EnvoyHookMissing { listeners_not_drained };
        (!self.options.require_envoy_hook).then_some(missing)
    }

    fn end_stage(&mut self, awaited: bool, now: Timestamp) {
        match self.stage {
            // It came too late for the pair, in a call that took long. No other drain would start.
            Stage::AwaitingEnvoyHook { .. } if self.hurried && awaited => {
                self.envoy_hook = true;
                self.enter_drain_delay(now);
            }
            Stage::AwaitingEnvoyHook { .. } => self.stage = Stage::Ending(Outcome::NO_ENVOY_HOOK),
            _ => self.end_delay(now),
        }
    }

    pub(super) fn end_delay(&mut self, now: Timestamp) {
        self.accepted.due = None;
        match self.stage {
            Stage::DrainDelay { .. } => {
                // One try to fail health checks is owed.
                self.deadline = None;
                // One that ends early ends for the listeners, too.
                self.listeners_earliest = self.listeners_earliest.min(now);
                self.listeners_due = self.listeners_due.map(|due| due.min(now));
                self.enter_failing(now);
            }
            Stage::CheckDelay { .. } => {
                self.accepted.count_soon();
                self.stage = Stage::WaitingForConnections;
                self.call_due = now;
            }
            _ => {}
        }
    }

    pub(super) fn enter_drain_delay(&mut self, now: Timestamp) {
        self.has_begun = true;
        self.stage = Stage::DrainDelay { until: self.started + self.options.delay() };
        self.begin_quiet_period(now);
        self.set_deadline();
    }

    pub(super) fn enter_failing(&mut self, now: Timestamp) {
        self.stage = Stage::Failing { attempts: 0 };
        self.call_due = self.fail_again_at(now);
    }

    /// At once, but never twice within an interval: an Envoy that stays LIVE would be asked without
    /// a pause (measured: 7,800 rounds in 4 s).
    fn fail_again_at(&self, now: Timestamp) -> Timestamp {
        self.failed_at.map_or(now, |failed| now.max(failed + self.ready_interval()))
    }

    pub(super) fn set_deadline(&mut self) {
        let timeout = if self.released { Some(Duration::ZERO) } else { self.options.drain_timeout };
        self.deadline = timeout.map(|timeout| self.started + timeout);
    }

    pub(super) fn drain_listeners_at(&mut self, time: Timestamp) {
        let earliest = self.listeners_earliest;
        self.listeners_due = self.options.drains_listeners().then(|| time.max(earliest));
    }

    /// A slow poll keeps Envoy's main thread busy: the next one leaves it in peace as long.
    pub(super) fn next_poll(&self, interval: Duration, now: Timestamp) -> Timestamp {
        let took = now - self.called_at;
        (self.called_at + interval).max(now + took)
    }

    /// A pause before another poll, which is short after a signal.
    pub(super) fn pause(&self, pause: Duration) -> Duration {
        if self.hurried { pause.min(HURRIED_INTERVAL) } else { pause }
    }

    pub(super) fn interval(&self) -> Duration {
        let interval = self.options.check_interval;
        if self.hurried { interval.min(HURRIED_INTERVAL) } else { interval }
    }

    /// How often Envoy's state is checked, whatever the interval between polls.
    pub(super) fn ready_interval(&self) -> Duration {
        self.interval().min(MAX_READY_INTERVAL)
    }

    pub(super) fn hides_listeners(&self) -> bool {
        !self.hidden.listeners.is_empty()
    }

    /// Whether this end leaves an Envoy in service that the drain has done nothing to.
    pub(super) fn left_in_service(&self, kind: OutcomeKind) -> bool {
        kind == OutcomeKind::NoEnvoyHook || kind == OutcomeKind::Released && !self.has_begun
    }

    /// Whether connections may be subtracted: not where some of them were perhaps not added.
    pub(super) fn subtracts(&self) -> bool {
        !self.hides_listeners() && !self.may_hide && self.hidden.uncounted.is_empty()
    }

    /// Whether a later poll tells what holds the drain as its own polls did.
    pub(super) fn counts_plainly(&self) -> bool {
        let unsent = self.hidden.unsent.is_some() && self.options.wait_for == WaitFor::Requests;
        self.subtracts() && !unsent
    }

    /// The time that a call may take: the drain ends with its timeout.
    pub fn time_left(&self, now: Timestamp) -> Option<Duration> {
        // The timeout of one that confirms the outcome before is not in force yet.
        let confirming = self.options.drain_timeout.filter(|_| self.confirms_outcome());
        let deadline = self.deadline.or(confirming.map(|timeout| self.started + timeout));
        deadline.map(|deadline| deadline - now)
    }

    /// Whether it may still turn out to have ended as the one before.
    pub fn confirms_outcome(&self) -> bool {
        matches!(self.stage, Stage::ConfirmingOutcome(_))
    }

    pub(super) fn phase(&self) -> Phase {
        match self.stage {
            Stage::AwaitingEnvoyHook { .. } => Phase::AwaitingEnvoyHook,
            Stage::DrainDelay { .. } => Phase::DrainDelay,
            Stage::Failing { .. } => Phase::FailingHealthChecks,
            Stage::CheckDelay { .. } => Phase::CheckDelay,
            Stage::ConfirmingOutcome(_) | Stage::WaitingForConnections | Stage::Ending(_) => {
                Phase::WaitingForConnections
            }
        }
    }
}
