//! The control socket: its path, its responses, its robustness, and the hooks that use it.

mod hook;
mod path;
mod requests;

use crate::support::prelude::*;

#[track_caller]
fn assert_no_drain_started(sidecar: &Sidecar, admin: &FakeAdmin) {
    let status = sidecar.status();
    assert!(status.is_before_the_first_drain(), "{status:?}");
    sidecar.assert_not_logged(DRAIN_STARTED);
    assert_eq!(admin.count(Route::Fail), 0);
}

/// Starts a drain as a hook does, and ends it: what was rejected before was not rejected for another
/// reason.
#[track_caller]
fn assert_drain_can_start(sidecar: &Sidecar, admin: &FakeAdmin) {
    admin.set_open(1);
    assert_eq!(sidecar.control().post("/drain"), (200, "started 1\n"));
    wait_open_connections(sidecar, 1);
    assert_joins(sidecar, "/drain?check-delay=0s");
    admin.set_open(0);
    wait_status(sidecar, |status| status.phase() == ENDED && status.outcome() == Some("drained"));
    assert_eq!(admin.count(Route::Fail), 1);
}
