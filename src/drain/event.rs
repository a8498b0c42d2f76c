//! What goes into the machine, and what comes out of it.

use std::time::Duration;

use super::outcome::{Ended, Outcome};
use crate::envoy::error::AdminError;
use crate::envoy::{Call, CallResult, Health, Poll};
use crate::os::clock::Timestamp;

/// What goes into the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time has passed, or something outside has changed.
    Tick,
    /// What came of a call that was asked for while the latest drain was number `drain`.
    Reply { drain: u64, call: Call, result: CallResult },
    /// What [`Action::Finish`] asked for is done.
    Finished,
}

/// What the worker does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until something outside changes.
    Sleep,
    SleepUntil(Timestamp),
    Call(Call),
    /// Do what belongs to the end of a drain, before any waiter hears of it.
    Finish(Outcome),
}

pub type Events = Vec<DrainEvent>;

/// One step of the machine: what to do next, and what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub action: Action,
    pub events: Events,
}

/// What happened in a step, for the log, the counters and the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrainEvent {
    /// A call succeeded. What it brought is an event of its own.
    Responded,
    CallFailed {
        call: Call,
        error: AdminError,
    },
    OutOfService {
        first_poll_in: Duration,
    },
    ListenersDraining,
    /// Envoy is no longer out of service, or its state cannot be known since it has restarted; its
    /// health checks are failed again.
    Reverted(Health),
    Polled(Poll),
    /// Envoy's own hook has come, as seen when the hooks can no longer be a pair.
    EnvoyHookWaits,
    /// It has not. `listeners_not_drained`: so Envoy's listeners, which should be, are not drained.
    EnvoyHookMissing {
        listeners_not_drained: bool,
    },
    Ended(Ended),
    /// The outcome of the drain is kept no longer.
    ReadyForNextDrain,
    /// The startup check is done: Envoy is in service and can be counted.
    EnvoyResponds(Poll),
    /// The startup check has put Envoy back in service.
    Restored,
    /// The startup check leaves Envoy out of service.
    NotRestored,
    /// The check after a drain has found Envoy out of service.
    StillOutOfService,
    /// The startup check has given up.
    NeverReady,
}
