//! No drain ends on a guess: what makes an end, and whose end it is.

mod counting;
mod gone;
mod late;
mod pace;
mod signals;

use crate::support::prelude::*;

/// A sidecar, and a hook that waits for the one connection.
fn waiting_for_one(admin: &FakeAdmin) -> (Sidecar, Hook) {
    let sidecar = Sidecar::beside(admin);
    let hook = start_drain(&sidecar, admin);
    (sidecar, hook)
}
