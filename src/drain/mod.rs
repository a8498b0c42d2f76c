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
//! What ends a drain:
//!
//! - A poll at the threshold, if nothing was subtracted for it; else four polls in a row. Where
//!   listeners are hidden, Envoy's second count must agree, and be younger than the polls.
//! - Three refused calls in a row, at any time: Envoy is gone. But an address at which nothing has ever
//!   responded is a wrong one while Envoy's own hook waits, which runs only while Envoy does.
//! - An operator's `release`, at any time.
//! - Its timeout, but not while Envoy's own hook is awaited, nor before the first try to fail health
//!   checks.
//! - Where Envoy's own hook is required, and neither waits at the start nor comes within 3 s: Envoy is
//!   left in service.
//!
//! A hook that comes within 30 s of an end starts a drain of its own, which first confirms that end:
//! where that still holds it is over at once. One that gave up is not confirmed.
//!
//! A signal starts a drain while Envoy's own hook waits, since then the pod is being deleted and the
//! exec hook did not come. In a drain it ends nothing, but hurries: the kubelet kills 2 s later.
//!
//! The worker performs what [`Machine::step`] asks for, one call at a time, and feeds back what came of
//! it; a reply that belongs to an earlier drain is dropped. While idle the machine asks for nothing,
//! but for one check of Envoy after the start, which finds an Envoy that a previous run of this
//! sidecar left out of service, and for what a client asks for: to see Envoy's state, or to restore it.

mod accepted;
mod confirmation;
mod delays;
mod event;
mod machine;
mod outcome;
mod pressure;
mod quiet;
mod replies;
mod stages;
mod startup_check;

pub use self::accepted::Accepted;
pub use self::event::{Action, DrainEvent, Event, Step};
pub use self::machine::{DrainStart, Machine, OUTCOME_RETENTION, STOP_DELAY};
pub use self::outcome::{Ended, Outcome, OutcomeKind, Phase};
pub use self::quiet::{Delay, QuietPeriod};
pub use self::stages::{Drain, HOOK_PAIRING_WINDOW, NextStep};
pub use self::startup_check::RESTORE_DELAY;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
