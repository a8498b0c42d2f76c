//! How a test is written: a small drain, step by step. Run it with
//! `cargo test --test process example`.

use crate::support::prelude::*;

// The name is a sentence: what must hold.
#[test]
fn a_pod_with_one_client_drains_when_that_client_has_disconnected() {
    // A real Envoy with one TCP listener. `FakeAdmin` is a scripted one, for faults that a real Envoy
    // seldom shows.
    let envoy = Envoy::builder().tcp("tcp").start();

    // A sidecar beside it. The builder adds short intervals and delays, where the test sets none, so
    // that no test is slower than it must be. Options are given as on the command line.
    let sidecar = Sidecar::builder().beside(&envoy).arg("--check-delay=100ms").start();

    // A client of Envoy: one connection, which closes when the value is dropped.
    let client = Connection::open(envoy.port("tcp"));
    assert!(client.echoes());

    // The pod is deleted: Envoy's own hook waits at the public port, and the exec hook starts the
    // drain. Whatever takes time is waited for as a condition, never by a sleep.
    let envoys_hook = sidecar.public().start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 1);
    let mut hook = sidecar.hook(&[]);

    // Envoy is out of service, one connection is counted, and neither hook has ended.
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    assert!(envoys_hook.is_waiting());

    // The last client disconnects, which ends the drain: the exec hook exits with code 0 and
    // explains why, and Envoy's hook has its response.
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_eq!(envoys_hook.arrived_response(), OK);

    // The status is parsed, not searched for text.
    let status = wait_status(&sidecar, |status| status.phase() == ENDED);
    assert_eq!((status.outcome(), status.open_connections()), (Some("drained"), Some(0)));

    // So are the records of the log, which are named by the constant of their message and by their
    // fields. These must come in this order, with any others between them.
    assert_logged(
        &sidecar,
        &[
            logged(DRAIN_STARTED).with("drain", 1),
            logged(OUT_OF_SERVICE),
            counted(1),
            counted(0),
            outcome("drained"),
        ],
    );

    // Dropping the sidecar stops it, and fails the test if it does not exit by itself, has panicked,
    // or leaves a file behind. Its log, and Envoy's, are printed when a test fails.
}
