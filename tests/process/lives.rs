//! Envoy dies, restarts, freezes or is meddled with; the sidecar dies and lives again.

use std::env;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::clients::{KeptAlive, Plain};
use crate::support::envoy::{Builder, Envoy};
use crate::support::scene::{
    Waiter, admin_kinds, arguments, assert_ends, assert_held, assert_told, beside, metric,
    wait_status,
};
use crate::support::sidecar::{Hook, Sidecar};
use crate::support::{PATIENCE, assert_took, shared, wait_for};

const DELAY_ANEW: &str =
    "failing its health checks again, and the check delay begins anew\" drain=1";
const PUT_BACK: &str = "left so by an earlier life of this sidecar: put back in service";

/// Three refused calls, a second apart, after at most the pause before the first.
const GONE_AFTER: Range<f32> = 2.0..3.5;

/// Nobody is left to be drained.
#[track_caller]
fn assert_gone(sidecar: &Sidecar, hook: &mut Hook, since: Instant) {
    assert_ends(hook, 0, "Envoy is gone: nobody listens at its admin address");
    let took = hook.wait(PATIENCE).at - since;
    assert_took("gone", took, GONE_AFTER);
    wait_status(sidecar, &["\"phase\":\"ended\"", "\"outcome\":\"envoy_gone\""]);
    assert_told(sidecar, &["msg=\"drain requested\"", "did not answer", "outcome=envoy_gone"]);
}

#[test]
fn an_envoy_that_dies_while_it_settles_is_gone() {
    let _turn = shared();
    for builder in admin_kinds() {
        let mut envoy = builder.http("http").start();
        let sidecar = beside(&envoy, &["--check-delay=1h"]);
        let waiter = Waiter::new(&sidecar);
        let mut hook = sidecar.hook(&[]);
        wait_status(&sidecar, &["\"phase\":\"settling\""]);
        assert!(hook.running());
        let since = Instant::now();
        envoy.kill();
        assert_gone(&sidecar, &mut hook, since);
        let (status, body) = waiter.answer();
        assert!(status == 200 && body.starts_with("Envoy is gone"), "{status} {body}");
    }
}

#[test]
fn an_envoy_that_dies_while_it_drains_is_gone() {
    let _turn = shared();
    for builder in admin_kinds() {
        let mut envoy = builder.http("http").start();
        let sidecar = beside(&envoy, &[]);
        let _client = KeptAlive::open(envoy.port("http"));
        let mut hook = sidecar.hook(&[]);
        assert_held(&sidecar, &mut hook, &envoy, 1);
        let since = Instant::now();
        envoy.kill();
        assert_gone(&sidecar, &mut hook, since);
    }
}

#[test]
fn an_envoy_that_is_dead_before_the_hook_is_gone() {
    let _turn = shared();
    for builder in admin_kinds() {
        let mut envoy = builder.start();
        let sidecar = beside(&envoy, &["--check-delay=1h"]);
        envoy.kill();
        let since = Instant::now();
        assert_gone(&sidecar, &mut sidecar.hook(&[]), since);
    }
}

#[test]
fn an_envoy_that_comes_back_live_is_taken_out_of_service_again() {
    let _turn = shared();
    let mut envoy = Envoy::builder().http("http").start();
    let sidecar = beside(&envoy, &["--check-delay=1500ms"]);
    let first = KeptAlive::open(envoy.port("http"));
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    // So that it does not see Envoy before that is live and has a client.
    sidecar.signal(Signal::SIGSTOP);
    envoy.restart();
    let second = KeptAlive::open(envoy.port("http"));
    assert_eq!(envoy.ready(), "LIVE");
    sidecar.signal(Signal::SIGCONT);
    sidecar.wait_log(DELAY_ANEW, PATIENCE);
    wait_status(&sidecar, &["\"phase\":\"settling\""]);
    assert!(hook.running());
    assert_held(&sidecar, &mut hook, &envoy, 1);
    drop(first);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    drop(second);
    assert_ends(&mut hook, 0, "drained: no connection is open");
    let failed = "health checks failed: Envoy is out of service";
    assert_told(&sidecar, &[failed, "open=1", DELAY_ANEW, failed, "open=0", "outcome=drained"]);
}

#[test]
fn an_envoy_that_another_version_replaces_in_a_drain_is_taken_out_of_service_again() {
    let _turn = shared();
    let Some(other) = env::var_os("OLD_ENVOY").map(PathBuf::from) else {
        println!("SKIPPED: $OLD_ENVOY is no Envoy of another version");
        return;
    };
    for (before, after) in [(Some(&*other), None), (None, Some(&*other))] {
        let builder = Envoy::builder().http("http").tcp("tcp");
        let builder = before.into_iter().fold(builder, Builder::program);
        let mut envoy = builder.start();
        let version = |envoy: &Envoy| {
            let (_, info) = envoy.get("/server_info");
            info.lines().find(|line| line.contains("\"version\"")).map(str::to_owned)
        };
        let (sidecar, first) = (beside(&envoy, &[]), version(&envoy));
        let _client = Plain::open(envoy.port("tcp"));
        let mut hook = sidecar.hook(&[]);
        assert_held(&sidecar, &mut hook, &envoy, 1);
        sidecar.signal(Signal::SIGSTOP);
        envoy.restart_as(after);
        let clients = (KeptAlive::open(envoy.port("http")), Plain::open(envoy.port("tcp")));
        assert!(clients.1.echoes());
        assert_ne!(first, version(&envoy), "it is the same one");
        sidecar.signal(Signal::SIGCONT);
        sidecar.wait_log(DELAY_ANEW, PATIENCE);
        assert_held(&sidecar, &mut hook, &envoy, 2);
        drop(clients);
        assert_ends(&mut hook, 0, "drained: no connection is open");
    }
}

#[test]
fn an_envoy_that_restarts_under_the_sidecars_eyes_is_taken_out_of_service_again() {
    let _turn = shared();
    let mut envoy = Envoy::builder().tcp("tcp").start();
    let sidecar = beside(&envoy, &["--check-delay=1500ms"]);
    let _first = Plain::open(envoy.port("tcp"));
    envoy.wait_stat("listener.tcp.downstream_cx_active", 1);
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    envoy.kill();
    sidecar.wait_log("Envoy did not answer as it should", PATIENCE);
    envoy.start_again();
    sidecar.wait_log("health checks again, and the check delay begins anew", PATIENCE);
    wait_status(&sidecar, &["\"phase\":\"settling\""]);
    wait_for("Envoy to be out of service", PATIENCE, || {
        // It may have no port for its listener yet.
        let answer = envoy.request("GET", "/ready").ok()?;
        (answer.body == "DRAINING\n").then_some(())
    });
    let second = Plain::open(envoy.port("tcp"));
    assert!(second.echoes());
    assert_held(&sidecar, &mut hook, &envoy, 1);
    drop(second);
    assert_ends(&mut hook, 0, "drained: no connection is open");
    assert_told(&sidecar, &["did not answer", "answers again", "check delay", "outcome=drained"]);
}

#[test]
fn an_envoy_that_somebody_puts_back_is_taken_out_of_service_again() {
    let _turn = shared();
    for phase in ["settling", "draining"] {
        let envoy = Envoy::builder().http("http").start();
        let sidecar = beside(&envoy, &["--check-delay=1s"]);
        let client = KeptAlive::open(envoy.port("http"));
        let mut hook = sidecar.hook(&[]);
        wait_status(&sidecar, &[&format!("\"phase\":\"{phase}\"")]);
        assert_eq!(envoy.post("/healthcheck/ok").0, 200);
        sidecar.wait_log(DELAY_ANEW, PATIENCE);
        // While it settles, this is seen before there is anything to count.
        let count = if phase == "settling" { "null" } else { "1" };
        let count = format!("\"open_connections\":{count},");
        wait_status(&sidecar, &["\"phase\":\"settling\"", &count]);
        assert_eq!(envoy.ready(), "DRAINING");
        assert_held(&sidecar, &mut hook, &envoy, 1);
        drop(client);
        assert_ends(&mut hook, 0, "drained: no connection is open");
        let failed = "health checks failed: Envoy is out of service";
        assert_told(&sidecar, &[failed, DELAY_ANEW, failed, "outcome=drained"]);
    }
}

/// Freezes an Envoy in a drain, for longer than three calls take.
fn freeze(builder: Builder) {
    let envoy = builder.http("http").start();
    let sidecar = beside(&envoy, &[]);
    let client = KeptAlive::open(envoy.port("http"));
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    envoy.pause();
    let error = "no whole answer within 2s";
    sidecar.wait_log(error, PATIENCE);
    // As many as would be enough for an Envoy that is gone.
    wait_for("three calls without an answer", PATIENCE, || {
        let metrics = sidecar.request("GET", "/metrics").1;
        (metric(&metrics, "poll_errors_total{kind=\"timeout\"}") >= 3).then_some(())
    });
    wait_status(&sidecar, &["\"phase\":\"draining\"", "\"open_connections\":1,", error]);
    assert!(hook.running());
    envoy.resume();
    sidecar.wait_log("Envoy answers again", PATIENCE);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    drop(client);
    assert_ends(&mut hook, 0, "drained: no connection is open");
    assert_told(&sidecar, &[error, "Envoy answers again", "outcome=drained"]);
}

#[test]
fn a_frozen_envoy_is_neither_gone_nor_drained() {
    let _turn = shared();
    thread::scope(|scope| {
        for builder in admin_kinds() {
            scope.spawn(|| freeze(builder));
        }
    });
}

/// An Envoy that somebody has left out of service.
fn stranded() -> Envoy {
    let envoy = Envoy::builder().http("http").start();
    assert_eq!(envoy.post("/healthcheck/fail").0, 200);
    assert_eq!(envoy.ready(), "DRAINING");
    envoy
}

#[track_caller]
fn wait_live(envoy: &Envoy) -> Instant {
    wait_for("Envoy to be LIVE", PATIENCE, || (envoy.ready() == "LIVE").then(Instant::now))
}

#[test]
fn a_stranded_envoy_is_put_back_in_service_after_two_seconds() {
    let _turn = shared();
    let envoy = stranded();
    let start = Instant::now();
    let sidecar = beside(&envoy, &[]);
    let took = wait_live(&envoy) - start;
    assert_took("put back", took, 2.0..4.0);
    assert_told(&sidecar, &["restore=on", PUT_BACK, "msg=\"Envoy answers\" state=LIVE open=0"]);
    let mut hook = sidecar.hook(&[]);
    assert_ends(&mut hook, 0, "drained: no connection is open");
    assert_eq!(envoy.ready(), "DRAINING");
}

#[test]
fn a_stranded_envoy_is_left_so_if_nothing_is_to_be_put_back() {
    let _turn = shared();
    let envoy = stranded();
    let sidecar = beside(&envoy, &["--no-restore"]);
    let told = ["restore=off", "Envoy is out of service though no drain goes on, and is left so"];
    assert_told(&sidecar, &told);
    assert_told(&sidecar, &["msg=\"Envoy answers\" state=\"not LIVE\""]);
    assert_eq!(envoy.ready(), "DRAINING");
}

#[test]
fn a_sidecar_that_was_killed_in_a_drain_puts_envoy_back_in_its_next_life() {
    let _turn = shared();
    let envoy = Envoy::builder().http("http").start();
    let mut first = beside(&envoy, &[]);
    let client = KeptAlive::open(envoy.port("http"));
    let mut hook = first.hook(&[]);
    assert_held(&first, &mut hook, &envoy, 1);
    // They are in one container.
    hook.kill();
    first.kill();
    assert!(first.control_socket().exists(), "a killed sidecar removes nothing");
    let args = arguments(&envoy.admin_address(), &[]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let second = Sidecar::launch().args(&args).control_socket(first.control_socket()).start();
    assert_eq!(envoy.ready(), "DRAINING");
    wait_live(&envoy);
    assert_told(&second, &[PUT_BACK, "msg=\"Envoy answers\" state=LIVE open=1"]);
    let mut hook = second.hook(&[]);
    assert_held(&second, &mut hook, &envoy, 1);
    drop(client);
    assert_ends(&mut hook, 0, "drained: no connection is open");
}

#[test]
fn a_hook_whose_sidecar_was_killed_drains_with_the_next_one() {
    let _turn = shared();
    let envoy = Envoy::builder().http("http").start();
    let mut first = beside(&envoy, &[]);
    let client = KeptAlive::open(envoy.port("http"));
    let mut hook = first.hook(&[]);
    assert_held(&first, &mut hook, &envoy, 1);
    first.kill();
    hook.wait_log("the sidecar was lost", PATIENCE);
    let args = arguments(&envoy.admin_address(), &[]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let second = Sidecar::launch().args(&args).control_socket(first.control_socket()).start();
    assert_held(&second, &mut hook, &envoy, 1);
    drop(client);
    assert_ends(&mut hook, 0, "drained: no connection is open");
    assert!(!second.log().iter().any(|line| line.contains(PUT_BACK)), "{:#?}", second.log());
}

#[test]
fn nothing_is_put_back_while_envoys_hook_waits() {
    let _turn = shared();
    let (awaited, other) = (stranded(), stranded());
    let sidecar = beside(&awaited, &[]);
    let waiter = Waiter::new(&sidecar);
    wait_status(&sidecar, &["\"waiters\":1,"]);
    // Started later, so when its Envoy is back the awaited one would be, too.
    let measure = beside(&other, &[]);
    wait_live(&other);
    measure.wait_log(PUT_BACK, PATIENCE);
    assert_eq!(awaited.ready(), "DRAINING");
    assert!(!waiter.is_answered());
    assert_ends(&mut sidecar.hook(&[]), 0, "drained: no connection is open");
    assert_eq!(waiter.answer(), (200, "OK".to_owned()));
    assert!(!sidecar.log().iter().any(|line| line.contains(PUT_BACK)));
    assert_eq!(awaited.ready(), "DRAINING");
}

#[test]
fn a_drain_in_the_first_two_seconds_never_shows_envoy_live() {
    let _turn = shared();
    let envoy = stranded();
    let client = KeptAlive::open(envoy.port("http"));
    drop(client);
    let sidecar = beside(&envoy, &[]);
    let looks = thread::scope(|scope| {
        // Its end, or a panic, ends the looks.
        let (drain, over) = mpsc::channel::<()>();
        let envoy = &envoy;
        let looks = scope.spawn(move || {
            let mut looks = Vec::new();
            while over.try_recv() == Err(TryRecvError::Empty) {
                looks.push(envoy.ready());
            }
            looks
        });
        // Longer than the time after which a stranded Envoy is put back.
        let mut hook = sidecar.hook(&["--check-delay=2500ms"]);
        wait_status(&sidecar, &["\"phase\":\"settling\""]);
        let exit = hook.wait(PATIENCE);
        assert_eq!(exit.code, Some(0), "{exit:?}");
        assert!(exit.took >= Duration::from_millis(2500), "{exit:?}");
        drop(drain);
        looks.join().expect("the thread that looks")
    });
    assert!(looks.len() > 100, "{} looks are few", looks.len());
    let other = looks.iter().position(|look| look != "DRAINING");
    assert_eq!(other.map(|n| (n, &looks[n])), None, "of {} looks", looks.len());
    assert!(!sidecar.log().iter().any(|line| line.contains(PUT_BACK)), "{:#?}", sidecar.log());
}
