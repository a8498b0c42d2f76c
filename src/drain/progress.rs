//! A drain in progress: whatever is due first is done first.

use std::time::Duration;

use super::event::{Action, DrainEvent, Events};
use super::outcome::{Outcome, Phase};
use crate::cli::options::Options;
use crate::envoy::error::AdminError;
use crate::envoy::{Call, CallResult, Health, Poll, Reply};
use crate::os::clock::Timestamp;

/// The kubelet starts both hooks within 80 ms (measured); on a busy node they may be further apart.
pub const HOOK_PAIRING_WINDOW: Duration = Duration::from_secs(3);

/// Refused calls in a row that make Envoy gone, and the time between them.
const MAX_REFUSALS: u32 = 3;
const REFUSED_RETRY: Duration = Duration::from_secs(1);

/// The pauses after the first failures to fail health checks; later ones are a check interval.
const FAIL_BACKOFF: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];

/// A revert must not stay unseen for longer than this between two polls.
pub(super) const MAX_READY_INTERVAL: Duration = Duration::from_secs(2);

/// A drain in progress.
#[derive(Clone, Debug)]
pub struct Drain {
    pub options: Options,
    pub started: Timestamp,
    pub(super) stage: Stage,
    /// When the stage's call is due, and when the latest call was made.
    call_due: Timestamp,
    called_at: Timestamp,
    /// When the drain gives up. Not set while Envoy's own hook is awaited, nor before the first try
    /// to fail health checks.
    deadline: Option<Timestamp>,
    /// When Envoy's listeners are to be drained, at the earliest.
    listeners_due: Option<Timestamp>,
    /// When the hooks can no longer be a pair, `None` once reported; and whether they are one.
    pairing_known: Option<Timestamp>,
    envoy_hook: bool,
    /// Refused calls in a row.
    refusals: u32,
    /// Whether Envoy was last seen starting, which says nothing about its health checks.
    envoy_starting: bool,
    /// The latest valid poll.
    pub last_poll: Option<Poll>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    AwaitingEnvoyHook { until: Timestamp },
    DrainDelay { until: Timestamp },
    Failing { attempts: usize },
    CheckDelay { until: Timestamp },
    WaitingForConnections,
    Ending(Outcome),
}

/// What can be due.
#[derive(Clone, Copy)]
enum Due {
    EndOfStage,
    Deadline,
    Call(Call),
}

impl Drain {
    pub(super) fn new(options: Options, envoy_hook: bool, now: Timestamp) -> Self {
        let mut drain = Self {
            call_due: now + ready_interval(&options),
            started: now,
            stage: Stage::AwaitingEnvoyHook { until: now + HOOK_PAIRING_WINDOW },
            called_at: now,
            deadline: None,
            listeners_due: None,
            pairing_known: Some(now + HOOK_PAIRING_WINDOW),
            envoy_hook,
            refusals: 0,
            envoy_starting: false,
            last_poll: None,
            options,
        };
        drain.drain_listeners_at(now);
        if envoy_hook || !drain.options.require_envoy_hook {
            drain.enter_drain_delay();
        }
        drain
    }

    /// Envoy's own hook has come, or a client that waits as it does. Returns whether a step is due.
    pub(super) fn waiter_arrived(&mut self, is_first: bool, now: Timestamp) -> bool {
        let pairs = !self.envoy_hook && now < self.started + HOOK_PAIRING_WINDOW;
        self.envoy_hook |= pairs;
        if matches!(self.stage, Stage::AwaitingEnvoyHook { .. }) && self.envoy_hook {
            self.enter_drain_delay();
        }
        pairs || (is_first && self.listeners_due.is_some())
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
                Due::EndOfStage => self.end_stage(now),
                Due::Deadline => {
                    let open = self.last_poll.map(|poll| poll.open);
                    self.stage = Stage::Ending(Outcome::timed_out(open));
                }
                Due::Call(call) => {
                    self.called_at = now;
                    return Action::Call(call);
                }
            }
        }
    }

    fn earliest(&self, awaited: bool, now: Timestamp) -> (Timestamp, Due) {
        let (end, call, may_drain_listeners) = match self.stage {
            Stage::AwaitingEnvoyHook { until } => (Some(until), Call::CheckReady, false),
            Stage::DrainDelay { until } => {
                let early = !self.options.health_check_failure_delay.is_zero();
                (Some(until), Call::CheckReady, early)
            }
            Stage::Failing { .. } => (None, Call::FailHealthChecks, false),
            Stage::CheckDelay { until } => (Some(until), Call::CheckReady, true),
            Stage::WaitingForConnections | Stage::Ending(_) => (None, Call::ReadStats, true),
        };
        let may_drain_listeners = awaited && may_drain_listeners;
        // A call takes time that a drain whose time is over does not have.
        let is_over = self.deadline.is_some_and(|deadline| deadline <= now);
        let listeners_due = self.listeners_due.filter(|_| may_drain_listeners && !is_over);
        let others = [
            (end, Due::EndOfStage),
            (self.deadline, Due::Deadline),
            (listeners_due, Due::Call(Call::DrainListeners)),
        ];
        // Of those due at the same time the first: a timeout that ends with a delay does not keep
        // health checks from being failed.
        let mut first = (Timestamp::MAX, Due::Deadline);
        for (at, due) in others {
            if let Some(at) = at.filter(|at| *at < first.0) {
                first = (at, due);
            }
        }
        // What is due already comes before a call, however long that has been due.
        let call_is_first = first.0 > now.max(self.call_due);
        if call_is_first { (self.call_due, Due::Call(call)) } else { first }
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

    fn end_stage(&mut self, now: Timestamp) {
        match self.stage {
            Stage::AwaitingEnvoyHook { .. } => self.stage = Stage::Ending(Outcome::NO_ENVOY_HOOK),
            Stage::DrainDelay { .. } => {
                // One try to fail health checks is owed.
                self.deadline = None;
                self.enter_failing(now);
            }
            Stage::CheckDelay { .. } => {
                self.stage = Stage::WaitingForConnections;
                self.call_at(now);
            }
            Stage::Failing { .. } | Stage::WaitingForConnections | Stage::Ending(_) => {}
        }
    }

    pub(super) fn replied(
        &mut self,
        call: Call,
        result: &CallResult,
        now: Timestamp,
        events: &mut Events,
    ) {
        if matches!(self.stage, Stage::Failing { .. }) {
            self.set_deadline();
        }
        if result.as_ref().is_err_and(AdminError::is_refusal) {
            return self.refused(now);
        }
        self.refusals = 0;
        match result {
            Err(_) if call == Call::DrainListeners => {
                // It holds nothing up: a client that is not reached is counted.
                self.listeners_due = Some(now + ready_interval(&self.options));
            }
            Err(_) => self.call_due = self.retry(now),
            Ok(Reply::HealthChecksFailed) => {
                let until = now + self.options.check_delay;
                let until = until.max(self.started + self.options.min_drain_duration);
                self.stage = Stage::CheckDelay { until };
                self.call_due = now + ready_interval(&self.options);
                events.push(DrainEvent::OutOfService { first_poll_in: until - now });
            }
            Ok(Reply::Ready(health)) => {
                self.call_due = now + ready_interval(&self.options);
                self.check(*health, now, events);
            }
            Ok(Reply::Stats(poll)) => {
                self.last_poll = Some(*poll);
                self.call_due = self.next_poll(now);
                let reverted = self.check(poll.health, now, events);
                events.push(DrainEvent::Polled(*poll));
                if !reverted && poll.open <= self.options.min_open_connections {
                    self.stage = Stage::Ending(Outcome::drained(poll.open));
                }
            }
            Ok(Reply::ListenersDraining) => {
                self.listeners_due = None;
                events.push(DrainEvent::ListenersDraining);
            }
            Ok(Reply::Listeners(_) | Reply::HealthChecksRestored) => {}
        }
    }

    fn refused(&mut self, now: Timestamp) {
        self.refusals += 1;
        self.call_due = now + REFUSED_RETRY;
        // The next one that responds may be another Envoy.
        self.drain_listeners_at(self.call_due);
        if self.refusals == MAX_REFUSALS {
            self.stage = Stage::Ending(Outcome::ENVOY_GONE);
        }
    }

    fn retry(&mut self, now: Timestamp) -> Timestamp {
        match &mut self.stage {
            Stage::Failing { attempts } => {
                let pause = FAIL_BACKOFF.get(*attempts).copied();
                *attempts += 1;
                now + pause.unwrap_or(self.options.check_interval)
            }
            Stage::WaitingForConnections => self.next_poll(now),
            _ => now + ready_interval(&self.options),
        }
    }

    /// Fails health checks again if they no longer are. Returns whether that is so.
    fn check(&mut self, health: Health, now: Timestamp, events: &mut Events) -> bool {
        let was_starting = std::mem::replace(&mut self.envoy_starting, health == Health::Starting);
        // An Envoy that is starting has restarted. Failed once more it comes up DRAINING
        // (measured), and until then /ready says that it is starting.
        let in_service = health == Health::Live || health == Health::Starting && !was_starting;
        let reverted = in_service
            && matches!(self.stage, Stage::CheckDelay { .. } | Stage::WaitingForConnections);
        if reverted {
            self.drain_listeners_at(now);
            self.enter_failing(now);
            events.push(DrainEvent::Reverted(health));
        }
        reverted
    }

    fn enter_drain_delay(&mut self) {
        self.stage = Stage::DrainDelay { until: self.started + self.options.delay() };
        self.set_deadline();
    }

    fn enter_failing(&mut self, now: Timestamp) {
        self.stage = Stage::Failing { attempts: 0 };
        self.call_at(now);
    }

    fn set_deadline(&mut self) {
        self.deadline = self.options.drain_timeout.map(|timeout| self.started + timeout);
    }

    fn drain_listeners_at(&mut self, time: Timestamp) {
        let earliest = self.started + self.options.drain_delay;
        self.listeners_due = self.options.drains_listeners().then(|| time.max(earliest));
    }

    /// A new stage calls at once, unless a refused call has its pause.
    fn call_at(&mut self, now: Timestamp) {
        if self.refusals == 0 {
            self.call_due = now;
        }
    }

    /// A slow poll keeps Envoy's main thread busy: the next one leaves it in peace as long.
    fn next_poll(&self, now: Timestamp) -> Timestamp {
        let took = now - self.called_at;
        (self.called_at + self.options.check_interval).max(now + took)
    }

    pub(super) fn phase(&self) -> Phase {
        match self.stage {
            Stage::AwaitingEnvoyHook { .. } => Phase::AwaitingEnvoyHook,
            Stage::DrainDelay { .. } => Phase::DrainDelay,
            Stage::Failing { .. } => Phase::FailingHealthChecks,
            Stage::CheckDelay { .. } => Phase::CheckDelay,
            Stage::WaitingForConnections | Stage::Ending(_) => Phase::WaitingForConnections,
        }
    }
}

/// How often `/ready` is checked while nothing is polled.
fn ready_interval(options: &Options) -> Duration {
    options.check_interval.min(MAX_READY_INTERVAL)
}
