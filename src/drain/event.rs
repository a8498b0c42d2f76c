//! What goes into the machine, and what comes out of it.

use std::time::Duration;

use super::outcome::{Ended, Outcome};
use super::quiet::{Delay, QuietPeriod};
use crate::envoy::error::AdminError;
use crate::envoy::{Call, CallResult, Health, HiddenStats, Poll};
use crate::os::clock::Timestamp;

/// What goes into the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time has passed, or something outside has changed.
    Tick,
    /// The result of a call that was made while the latest drain was number `drain`.
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
    /// Create the ready file if drained, before any waiter is answered.
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
    CallSucceeded(Call),
    CallFailed {
        call: Call,
        error: AdminError,
    },
    OutOfService {
        first_poll_in: Duration,
    },
    /// So many were accepted since they were last counted.
    NewConnections(u64),
    /// A delay has ended early, after `took`, with so much of it left; so many new connections came in it.
    Quiet {
        delay: Delay,
        took: Duration,
        left: Duration,
        new: u64,
    },
    /// A delay has run its full length: new connections, or requests, came in it.
    NotQuiet {
        delay: Delay,
        quiet: QuietPeriod,
    },
    /// New connections cannot be seen, so that no delay ends early.
    ArrivalsHidden,
    ListenersDraining,
    /// Which of Envoy's listeners have no gauges.
    ListenersCompared(HiddenStats),
    /// Why that could not be found out.
    ListenersNotCompared(AdminError),
    /// Envoy is back in service, or has restarted, so that its state is unknown; its health checks
    /// are failed again.
    Reverted(Health),
    /// A poll that counts: not one that others must confirm first.
    Polled(Poll),
    /// The drain that ended just before no longer holds: this one begins.
    OutcomeOutdated,
    /// Nothing has ever responded at the admin address, while Envoy's own hook waits.
    NeverResponded,
    /// A signal came while Envoy's own hook waited, so it started a drain.
    StartedBySignal,
    /// Envoy's own hook has come, as seen when the hooks can no longer be a pair.
    EnvoyHookWaits,
    /// It has not come. `listeners_not_drained`: so the listeners, which the options would drain,
    /// are left alone.
    EnvoyHookMissing {
        listeners_not_drained: bool,
    },
    Ended(Ended),
    /// The outcome of the drain is kept no longer.
    ReadyForNextDrain,
    /// The startup check is done: Envoy is in service and can be counted.
    StartupCheckPassed(Poll),
    /// The startup check has put Envoy back in service.
    Restored,
    /// A client has had Envoy restored to service, or why that failed.
    RestoreReplied(Option<AdminError>),
    /// The startup check leaves Envoy out of service.
    NotRestored,
    /// The check after a drain has found Envoy out of service.
    StillOutOfService,
    /// The startup check has found Envoy starting for a minute, and goes on more slowly.
    StillStarting,
    /// The startup check has given up.
    NeverReady,
}
