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
    /// When the stage's call is due, and when the latest call was asked for.
    call_due: Timestamp,
    asked: Timestamp,
    /// When the drain gives up. Not while Envoy's own hook is awaited, nor before health checks
    /// were tried to be failed once.
    deadline: Option<Timestamp>,
    /// When Envoy's listeners are to be drained, at the earliest.
    listeners_due: Option<Timestamp>,
    /// When it is known whether Envoy's own hook came with the exec hook, and whether it did.
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

/// What can be due. Of those due at the same time, the first of this list is done first.
#[derive(Clone, Copy)]
enum Due {
    PairingKnown,
    /// Before the deadline: a timeout that ends with a delay does not keep health checks from being
    /// failed.
    EndOfStage,
    Deadline,
    ListenersCall,
    Call(Call),
}

impl Drain {
    pub(super) fn new(options: Options, envoy_hook: bool, now: Timestamp) -> Self {
        let mut drain = Self {
            call_due: now + ready_interval(&options),
            started: now,
            stage: Stage::AwaitingEnvoyHook { until: now + HOOK_PAIRING_WINDOW },
            asked: now,
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
            drain.delay();
        }
        drain
    }

    /// Envoy's own hook has come, or a client that waits as it does. Returns whether a step is due.
    pub(super) fn waiter_arrived(&mut self, is_first: bool, now: Timestamp) -> bool {
        let pairs = !self.envoy_hook && now < self.started + HOOK_PAIRING_WINDOW;
        self.envoy_hook |= pairs;
        if matches!(self.stage, Stage::AwaitingEnvoyHook { .. }) && self.envoy_hook {
            self.delay();
        }
        pairs || (is_first && self.listeners_due.is_some())
    }

    /// Does what is due first until that is a call, or nothing is due.
    pub(super) fn next(&mut self, awaited: bool, now: Timestamp, events: &mut Events) -> Action {
        loop {
            if let Stage::Ending(outcome) = self.stage {
                return Action::Finish(outcome);
            }
            let (at, due) = self.earliest(awaited, now);
            if now < at {
                return Action::SleepUntil(at);
            }
            let call = match due {
                Due::PairingKnown => {
                    self.pairing_known = None;
                    events.extend(self.pairing());
                    continue;
                }
                Due::EndOfStage => {
                    self.end_stage(now);
                    continue;
                }
                Due::Deadline => {
                    let open = self.last_poll.map(|poll| poll.open);
                    self.stage = Stage::Ending(Outcome::timed_out(open));
                    continue;
                }
                Due::ListenersCall => Call::DrainListeners,
                Due::Call(call) => call,
            };
            self.asked = now;
            return Action::Call(call);
        }
    }

    fn earliest(&self, awaited: bool, now: Timestamp) -> (Timestamp, Due) {
        let (end, call, drains_listeners) = match self.stage {
            Stage::AwaitingEnvoyHook { until } => (Some(until), Call::CheckReady, false),
            Stage::DrainDelay { until } => {
                let early = !self.options.health_check_failure_delay.is_zero();
                (Some(until), Call::CheckReady, early)
            }
            Stage::Failing { .. } => (None, Call::FailHealthChecks, false),
            Stage::CheckDelay { until } => (Some(until), Call::CheckReady, true),
            Stage::WaitingForConnections | Stage::Ending(_) => (None, Call::ReadStats, true),
        };
        let drains_listeners = awaited && drains_listeners;
        // A call takes time that a drain whose time is over does not have.
        let is_over = self.deadline.is_some_and(|deadline| deadline <= now);
        let listeners_due = self.listeners_due.filter(|_| drains_listeners && !is_over);
        let others = [
            (self.pairing_known, Due::PairingKnown),
            (end, Due::EndOfStage),
            (self.deadline, Due::Deadline),
            (listeners_due, Due::ListenersCall),
        ];
        let mut earliest = (Timestamp::MAX, Due::Call(call));
        for (at, due) in others {
            if let Some(at) = at.filter(|at| *at < earliest.0) {
                earliest = (at, due);
            }
        }
        // Not before what is due already: a stage that is over asks for nothing more.
        if now < earliest.0 && self.call_due < earliest.0 {
            earliest = (self.call_due, Due::Call(call));
        }
        earliest
    }

    /// Whether this looks like the end of a pod, of which the sidecar itself does not hear. Where
    /// Envoy's own hook is required and missing, the outcome says so.
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
                self.deadline = None;
                self.fail(now);
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
            self.arm_deadline();
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
            Ok(Reply::HealthChecksRestored) => {}
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
        let is_in_service = match health {
            Health::Live => true,
            Health::Starting => !was_starting,
            Health::Draining => false,
        };
        let was_failed =
            matches!(self.stage, Stage::CheckDelay { .. } | Stage::WaitingForConnections);
        let reverted = is_in_service && was_failed;
        if reverted {
            self.drain_listeners_at(now);
            self.fail(now);
            events.push(DrainEvent::Reverted(health));
        }
        reverted
    }

    fn delay(&mut self) {
        self.stage = Stage::DrainDelay { until: self.started + self.options.delay() };
        self.arm_deadline();
    }

    fn fail(&mut self, now: Timestamp) {
        self.stage = Stage::Failing { attempts: 0 };
        self.call_at(now);
    }

    fn arm_deadline(&mut self) {
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
        let took = now - self.asked;
        (self.asked + self.options.check_interval).max(now + took)
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
