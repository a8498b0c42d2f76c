//! The drain as a state machine, without I/O and without a clock of its own.
//!
//! ```text
//!         start                drain-delay          200            check-delay          at the threshold
//!   Idle -------> DrainDelay -------------> Failing ---> CheckDelay -----------> Waiting --------------> Ended
//!    ^  |             ^                      ^    ^          |                      |                     |
//!    |  |             | Envoy's hook came    |    +-- LIVE --+                      |                     |
//!    |  +-> AwaitingEnvoyHook                +---------------- LIVE ----------------+                     |
//!    +------------------------------------------ 30 s ----------------------------------------------------+
//! ```
//!
//! Where Envoy's listeners are drained too, that is one more call: in the drain delay, or behind
//! Failing, and only while Envoy's own hook waits, for it cannot be undone.
//!
//! Three refused calls in a row end the drain at any time (Envoy is gone). Its timeout ends it too,
//! but not while Envoy's own hook is awaited, nor before the first try to fail health checks. Where
//! Envoy's own hook is required, the drain first waits for it, and is over when it has not come
//! within 3 s. The worker performs what [`Machine::step`] asks for, one call at a time,
//! and feeds back what came of it; a reply that belongs to an earlier drain is dropped.
//!
//! While idle the machine asks for nothing, but for one check of Envoy after the start, which
//! finds an Envoy that a previous run of this sidecar left out of service.

mod event;
mod machine;
mod outcome;
mod progress;
mod startup_check;

pub use self::event::{Action, DrainEvent, Event, Step};
pub use self::machine::{DrainStart, Machine, OUTCOME_RETENTION};
pub use self::outcome::{Ended, Outcome, OutcomeKind, Phase};
pub use self::progress::{Drain, HOOK_PAIRING_WINDOW};
pub use self::startup_check::RESTORE_DELAY;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
