//! The state of the sidecar: idle, in a drain, or with the outcome of one.

use std::time::Duration;

use super::event::{Action, DrainEvent, Event, Events, Step};
use super::outcome::{Ended, OutcomeKind, Phase};
use super::progress::{Drain, HOOK_PAIRING_WINDOW, Stage};
use super::startup_check::{CheckReason, RESTORE_DELAY, StartupCheck};
use crate::cli::options::Options;
use crate::envoy::{Call, CallResult};
use crate::os::clock::Timestamp;

/// An ended drain answers late waiters and repeated hooks for this long: a kubelet that restarts
/// in the middle runs both hooks again.
pub const OUTCOME_RETENTION: Duration = Duration::from_secs(30);

/// Whether a request to drain started one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainStart {
    /// It started the drain of this number.
    Started(u64),
    /// The drain of this number was in progress, or had ended just before.
    Joined(u64),
}

impl DrainStart {
    pub const fn number(self) -> u64 {
        match self {
            Self::Started(number) | Self::Joined(number) => number,
        }
    }
}

/// The state of the sidecar.
#[derive(Clone, Debug)]
pub struct Machine {
    state: State,
    /// The number of the latest drain; 0 before the first.
    number: u64,
    last: Option<Ended>,
    /// The options of the latest drain, for as long as they matter.
    last_options: Option<Options>,
    /// Whether a client waits for a drain as Envoy's own hook does, and when the latest came.
    awaited: bool,
    arrived: Option<Timestamp>,
    /// The startup check that was still to be done when the drain started.
    suspended_check: Option<StartupCheck>,
}

#[derive(Clone, Debug)]
enum State {
    Idle(Option<StartupCheck>),
    Draining(Box<Drain>),
    Ended { until: Timestamp },
}

impl Machine {
    /// A sidecar that has just started and will check Envoy once. `restore`: whether an Envoy that
    /// is then out of service is restored.
    pub fn new(now: Timestamp, restore: bool) -> Self {
        let check = StartupCheck::new(CheckReason::Startup { restore }, now + RESTORE_DELAY);
        Self {
            state: State::Idle(Some(check)),
            number: 0,
            last: None,
            last_options: None,
            awaited: false,
            arrived: None,
            suspended_check: None,
        }
    }

    /// Starts a drain, or joins the one that is in progress or has just ended (its options then
    /// hold).
    pub fn start(&mut self, options: Options, now: Timestamp) -> DrainStart {
        if let State::Idle(check) = &mut self.state {
            self.number += 1;
            self.suspended_check = check.take();
            let paired = self.arrived.is_some_and(|arrived| now < arrived + HOOK_PAIRING_WINDOW);
            self.state = State::Draining(Box::new(Drain::new(options, paired, now)));
            DrainStart::Started(self.number)
        } else {
            DrainStart::Joined(self.number)
        }
    }

    /// A client has come to wait for a drain, as Envoy's own hook does. Returns whether a step is
    /// due.
    pub fn waiter_arrived(&mut self, now: Timestamp) -> bool {
        let is_first = !std::mem::replace(&mut self.awaited, true);
        self.arrived = Some(now);
        match &mut self.state {
            State::Draining(drain) => drain.waiter_arrived(is_first, now),
            State::Idle(_) | State::Ended { .. } => false,
        }
    }

    /// No client waits as Envoy's own hook does any more.
    pub fn last_waiter_left(&mut self, now: Timestamp) {
        if let State::Idle(Some(check)) = &mut self.state
            && self.awaited
        {
            check.postpone(now);
        }
        self.awaited = false;
    }

    /// Feeds in an event; returns what to do next and what happened.
    pub fn step(&mut self, event: &Event, now: Timestamp) -> Step {
        let mut events = Vec::new();
        match event {
            Event::Reply { drain, call, result } if *drain == self.number => {
                self.replied(*call, result, now, &mut events);
            }
            // The reply to a call that an earlier drain, or none, had asked for.
            Event::Reply { .. } | Event::Tick => {}
            Event::Finished => self.finished(now, &mut events),
        }
        let action = self.next(now, &mut events);
        Step { action, events }
    }

    fn replied(&mut self, call: Call, result: &CallResult, now: Timestamp, events: &mut Events) {
        events.push(match result {
            Ok(_) => DrainEvent::CallSucceeded,
            Err(error) => DrainEvent::CallFailed { call, error: error.clone() },
        });
        match &mut self.state {
            State::Draining(drain) => drain.replied(call, result, now, events),
            State::Idle(check) => {
                *check = check.take().and_then(|check| check.replied(result, now, events));
            }
            State::Ended { .. } => {}
        }
    }

    fn finished(&mut self, now: Timestamp, events: &mut Events) {
        let State::Draining(drain) = &self.state else { return };
        let Stage::Ending(outcome) = drain.stage else { return };
        let ended = Ended {
            number: self.number,
            outcome,
            threshold: drain.options.min_open_connections,
            took: now - drain.started,
        };
        events.push(DrainEvent::Ended(ended.clone()));
        self.last = Some(ended);
        self.last_options = Some(drain.options.clone());
        self.state = match outcome.kind {
            // Nothing has been done that a later hook could join.
            OutcomeKind::NoEnvoyHook => {
                State::Idle(self.suspended_check.take().map(|mut check| {
                    check.postpone(now);
                    check
                }))
            }
            _ => State::Ended { until: now + OUTCOME_RETENTION },
        };
    }

    fn next(&mut self, now: Timestamp, events: &mut Events) -> Action {
        if let State::Ended { until } = self.state {
            if now < until {
                return Action::SleepUntil(until);
            }
            events.push(DrainEvent::ReadyForNextDrain);
            self.state = State::Idle(Some(StartupCheck::new(CheckReason::AfterDrain, now)));
        }
        match &mut self.state {
            State::Draining(drain) => drain.next(self.awaited, now, events),
            // A deletion may be under way.
            State::Idle(Some(check)) if check.restores() && self.awaited => Action::Sleep,
            State::Idle(Some(check)) if now < check.due => Action::SleepUntil(check.due),
            State::Idle(Some(check)) => Action::Call(check.call),
            State::Idle(None) | State::Ended { .. } => Action::Sleep,
        }
    }

    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Idle(_) => Phase::Idle,
            State::Ended { .. } => Phase::Ended,
            State::Draining(drain) => drain.phase(),
        }
    }

    /// The drain in progress.
    pub fn drain(&self) -> Option<&Drain> {
        match &self.state {
            State::Draining(drain) => Some(drain),
            State::Idle(_) | State::Ended { .. } => None,
        }
    }

    /// The drain in progress, for the simulation to plant a bug in.
    #[cfg(test)]
    pub(super) fn drain_mut(&mut self) -> Option<&mut Drain> {
        match &mut self.state {
            State::Draining(drain) => Some(drain),
            State::Idle(_) | State::Ended { .. } => None,
        }
    }

    /// The number of the latest drain; 0 before the first.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The latest drain that has ended.
    pub fn last(&self) -> Option<&Ended> {
        self.last.as_ref()
    }

    /// What holds for the drain in progress or the latest one, until nothing of it is left to be
    /// done.
    pub fn options(&self) -> Option<&Options> {
        match &self.state {
            State::Draining(drain) => Some(&drain.options),
            State::Ended { .. }
            | State::Idle(Some(StartupCheck { reason: CheckReason::AfterDrain, .. })) => {
                self.last_options.as_ref()
            }
            State::Idle(_) => None,
        }
    }

    /// The drain that a new waiter waits for: the current or just-ended one, else the next.
    pub fn awaited_drain(&self) -> u64 {
        match self.state {
            State::Idle(_) => self.number + 1,
            State::Draining(_) | State::Ended { .. } => self.number,
        }
    }

    /// How the drain of this number ended, if it has; a later one's end stands in for it.
    pub fn end_of(&self, number: u64) -> Option<&Ended> {
        self.last.as_ref().filter(|ended| ended.number >= number)
    }
}
