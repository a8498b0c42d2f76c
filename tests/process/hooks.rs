//! A pod's deletion as the kubelet does it: the exec hook in the sidecar, Envoy's own hook at the
//! public port, and SIGTERM when they have ended. And what happens when one of them is missing.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::clients::Plain;
use crate::support::pod::{
    DRAINED, Hooks, PATHS, ask, assert_drains, assert_stops, before, beside, connect, ok, pod,
    put_back, wait_waiting, with_listener,
};
use crate::support::scene::{
    self, Waiter, assert_ends, assert_held, assert_told, freeze, metric, wait_status,
};
use crate::support::sidecar::Sidecar;
use crate::support::tap::Tap;
use crate::support::{PATIENCE, assert_took, shared, wait_for};

const LEFT_ALONE: &str = "Envoy is left alone: its own hook did not come to /shutdown within 3s";
const PUT_BACK: &str = "left so by an earlier life of this sidecar: put back in service";

/// Hooks that are no further apart belong together.
const TOGETHER: f32 = 3.0;

#[test]
fn envoys_hook_ends_first_whichever_began_first() {
    let _turn = shared();
    let envoy = with_listener();
    for gap in [0, 20, 80].map(Duration::from_millis) {
        for exec_first in [true, false] {
            let mut sidecar = beside(&envoy, &[]);
            let client = connect(&envoy);
            let hooks = Hooks::run(&sidecar, exec_first, gap);
            hooks.assert_drained_with(&sidecar, &envoy, client);
            assert_stops(&mut sidecar);
            put_back(&envoy);
        }
    }
}

#[test]
fn thirty_drains_in_a_row_lose_no_waiter_to_the_signal_behind_the_hook() {
    let _turn = shared();
    let envoy = with_listener();
    for round in 0..30 {
        let mut sidecar = beside(&envoy, &[]);
        let (port, client) = (sidecar.port(), connect(&envoy));
        let early = (round % 2 == 0).then(|| sidecar.hook(&[]));
        let waiters = [0, 1, 0, 1, 0].map(|path| Waiter::outside(port, PATHS[path]));
        let mut hook = early.unwrap_or_else(|| sidecar.hook(&[]));
        wait_waiting(&sidecar, 5);
        assert_held(&sidecar, &mut hook, &envoy, 1);
        assert!(!waiters.iter().any(Waiter::is_answered));
        drop(client);
        // Without a pause, so that the signal comes as soon as it can.
        while hook.running() {}
        let twice = round % 3 == 0;
        (0..1 + u8::from(twice)).for_each(|_| sidecar.signal(Signal::SIGTERM));
        for waiter in &waiters {
            assert_eq!(waiter.answer_there(), ok(), "round {round}");
        }
        assert_ends(&mut hook, 0, DRAINED);
        let exit = sidecar.wait_exit(PATIENCE);
        assert!(exit.code == Some(0) || twice && exit.code == Some(143), "{exit:?}");
        put_back(&envoy);
    }
}

#[test]
fn a_signal_in_the_drain_lets_it_and_its_waiters_wait_for_the_end() {
    let _turn = shared();
    let (envoy, mut sidecar, client) = pod();
    let port = sidecar.port();
    let early = PATHS.map(|path| Waiter::outside(port, path));
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_log("signal=SIGTERM phase=draining", PATIENCE);
    let late = PATHS.map(|path| Waiter::outside(port, path));
    wait_waiting(&sidecar, 4);
    assert_eq!(ask(port, "GET", "/healthz"), ok());
    assert_held(&sidecar, &mut hook, &envoy, 1);
    assert!(!early.iter().chain(&late).any(Waiter::is_answered));
    drop(client);
    assert_ends(&mut hook, 0, DRAINED);
    for waiter in early.iter().chain(&late) {
        assert_eq!(waiter.answer_there(), ok());
    }
    assert_eq!(sidecar.wait_exit(PATIENCE).code, Some(0));
}

#[test]
fn a_second_signal_in_the_drain_ends_all_connections_at_once() {
    let _turn = shared();
    let (envoy, mut sidecar, _client) = pod();
    let hooks = Hooks::held(&sidecar, &envoy);
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_log("signal=SIGTERM phase=draining", PATIENCE);
    assert!(!hooks.envoys.ends_within(Duration::ZERO));
    sidecar.signal(Signal::SIGTERM);
    assert!(hooks.envoys.ends_within(PATIENCE), "the connection stays open");
    assert_eq!(sidecar.wait_exit(PATIENCE).code, Some(143));
}

/// As many as it takes some time to answer.
#[track_caller]
fn crowd(sidecar: &Sidecar) -> Vec<Waiter> {
    let port = sidecar.port();
    let crowd = (0..150).map(|number| Waiter::outside(port, PATHS[number % 2])).collect();
    wait_waiting(sidecar, 150);
    crowd
}

#[test]
fn a_crowd_at_the_port_has_its_answers_before_the_hook_or_the_sidecar_ends() {
    let _turn = shared();
    let envoy = with_listener();
    for round in 0..6 {
        let killed = round == 0;
        let mut sidecar = beside(&envoy, &[]);
        let client = connect(&envoy);
        let mut hook = sidecar.hook(&[]);
        assert_held(&sidecar, &mut hook, &envoy, 1);
        // As the hook asks, whose process takes a moment more to end.
        let last = Waiter::at(&sidecar, "/shutdown?drain=1");
        let crowd = crowd(&sidecar);
        if killed {
            hook.kill();
            sidecar.signal(Signal::SIGTERM);
            sidecar.wait_log("signal=SIGTERM phase=draining", PATIENCE);
        }
        drop(client);
        if killed {
            assert_eq!(sidecar.wait_exit(PATIENCE).code, Some(0));
        } else {
            while !last.is_answered() {}
        }
        // Against the order in which they are answered.
        let late = crowd.iter().rev().filter(|waiter| !waiter.is_answered()).count();
        assert_eq!(late, 0, "waiters without an answer");
        assert!(crowd.iter().all(|waiter| waiter.answer_there() == ok()));
        put_back(&envoy);
    }
}

#[test]
fn a_signal_lets_go_a_crowd_at_the_port_when_no_drain_goes_on() {
    let _turn = shared();
    let envoy = with_listener();
    let mut sidecar = beside(&envoy, &[]);
    let crowd = crowd(&sidecar);
    assert_stops(&mut sidecar);
    for waiter in crowd {
        assert_eq!(waiter.answer_there(), (503, "the sidecar stops\n".to_owned()));
    }
    assert_eq!(envoy.ready(), "LIVE");
}

#[test]
fn who_comes_to_the_port_after_the_end_is_told_of_it_at_once() {
    let _turn = shared();
    let envoy = with_listener();
    let mut sidecar = beside(&envoy, &[]);
    assert_drains(&sidecar, &envoy);
    // With a connection open, a drain of its own would not end.
    put_back(&envoy);
    let _client = connect(&envoy);
    for path in PATHS {
        let asked = Instant::now();
        assert_eq!(ask(sidecar.port(), "GET", path), ok());
        assert_took(path, asked.elapsed(), 0.0..2.0);
    }
    assert_eq!(envoy.ready(), "LIVE", "nothing was asked of it again");
    assert_stops(&mut sidecar);
}

#[test]
fn envoys_hook_is_told_how_a_drain_ended_that_did_not_drain() {
    let _turn = shared();
    let mut envoy = with_listener();
    for (code, sentence) in [
        (1, "gave up at the drain timeout: 1 open at the last poll"),
        (0, "Envoy is gone: nobody listens at its admin address, so nothing is left to drain"),
    ] {
        let args = if code == 1 { &["--drain-timeout=500ms"][..] } else { &[] };
        let mut sidecar = beside(&envoy, args);
        let _client = connect(&envoy);
        let mut hooks = Hooks::run(&sidecar, false, Duration::ZERO);
        if code == 0 {
            assert_held(&sidecar, &mut hooks.exec, &envoy, 1);
            envoy.kill();
        }
        assert_ends(&mut hooks.exec, code, sentence);
        assert_eq!(hooks.envoys.answer_there(), (200, format!("{sentence}\n")));
        assert_eq!(ask(sidecar.port(), "GET", PATHS[1]), (200, format!("{sentence}\n")));
        assert_stops(&mut sidecar);
        if code == 1 {
            put_back(&envoy);
        }
    }
}

/// Comes to wait and hangs up, two thousand times, 200 at a time, in every way.
#[track_caller]
fn assert_hang_ups_leave_nothing(sidecar: &Sidecar) {
    let port = sidecar.port();
    let (fds, threads) = (sidecar.fds(), sidecar.threads());
    for batch in 0..10 {
        let waiters = [0; 200].map(|_| Waiter::outside(port, PATHS[batch % 2]));
        // Or at once, perhaps before the request was read.
        if batch % 4 < 2 {
            wait_waiting(sidecar, 200);
            // The control socket hears of one, with its connection's two ends and a thread.
            let (all, more) = (sidecar.fds(), sidecar.threads().saturating_sub(threads));
            assert!(all < fds + 220 && more < 20, "{all} descriptors, {more} threads more");
        }
        for waiter in waiters {
            if batch % 2 == 0 { drop(waiter) } else { waiter.reset() }
        }
        wait_waiting(sidecar, 0);
    }
    // While a hook asks every second, tiny_http keeps a thread more than it needs.
    wait_for("descriptors and threads to be as before", PATIENCE, || {
        (sidecar.fds() <= fds && sidecar.threads() < threads + 4).then_some(())
    });
    wait_waiting(sidecar, 0);
}

#[test]
fn thousands_who_hang_up_leave_nothing_behind() {
    let _turn = shared();
    let envoy = with_listener();
    let sidecar = beside(&envoy, &[]);
    assert_hang_ups_leave_nothing(&sidecar);
    let client = connect(&envoy);
    let mut hook = sidecar.hook(&[]);
    hook.wait_log("draining, 1 open", PATIENCE);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    assert_hang_ups_leave_nothing(&sidecar);
    let envoys = Waiter::outside(sidecar.port(), PATHS[0]);
    Hooks { exec: hook, envoys }.assert_drained_with(&sidecar, &envoy, client);
}

#[test]
fn who_comes_as_the_last_one_leaves_waits_all_the_same() {
    let _turn = shared();
    let (envoy, sidecar, client) = pod();
    let port = sidecar.port();
    let mut hook = sidecar.hook(&[]);
    let mut waiter = Waiter::outside(port, PATHS[0]);
    for _ in 0..300 {
        wait_waiting(&sidecar, 1);
        assert!(!waiter.is_answered());
        drop(waiter);
        waiter = Waiter::outside(port, PATHS[0]);
    }
    assert_held(&sidecar, &mut hook, &envoy, 1);
    Hooks { exec: hook, envoys: waiter }.assert_drained_with(&sidecar, &envoy, client);
}

#[test]
fn the_sidecars_next_life_has_the_port_at_once_and_drains_to_the_end() {
    let _turn = shared();
    let (envoy, mut first, client) = pod();
    let (port, idle) = (first.port(), Plain::open(first.port()));
    let mut lost = Hooks::held(&first, &envoy);
    // They are in one container.
    lost.exec.kill();
    first.kill();
    assert!(lost.envoys.ends_within(PATIENCE), "it waits for nobody");
    // The first life's connections are not forgotten yet, whoever has closed them first.
    drop(lost);
    let (control, serve) = (first.control_socket(), format!("--serve-port={port}"));
    let args = scene::arguments(&envoy.admin_address(), &["--check-interval=20ms", &serve]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let second = Sidecar::launch().args(&args).control_socket(control).start();
    assert_eq!(second.port(), port);
    let again = Hooks::run(&second, true, Duration::ZERO);
    again.assert_drained_with(&second, &envoy, client);
    assert!(!second.log().iter().any(|line| line.contains(PUT_BACK)), "{:#?}", second.log());
    drop(idle);
}

#[test]
fn a_sidecar_that_was_frozen_in_the_drain_answers_when_it_thaws() {
    let _turn = shared();
    let (envoy, sidecar, client) = pod();
    let mut hooks = Hooks::held(&sidecar, &envoy);
    freeze(&sidecar);
    let late = Waiter::outside(sidecar.port(), PATHS[1]);
    drop(client);
    envoy.wait_stat("listener.tcp.downstream_cx_active", 0);
    assert!(!hooks.envoys.is_answered() && !late.is_answered() && hooks.exec.running());
    sidecar.signal(Signal::SIGCONT);
    assert_ends(&mut hooks.exec, 0, DRAINED);
    assert_eq!(hooks.envoys.answer_there(), ok());
    // It may be seen only after the end.
    assert_eq!(late.answer(), ok());
}

#[test]
fn a_lone_exec_hook_leaves_envoy_alone_where_envoys_own_is_required() {
    let _turn = shared();
    let required = &["--require-envoy-hook"][..];
    let run = |of_sidecar: &[&str], of_hook: &[&str]| {
        let envoy = with_listener();
        let tap = Tap::unix(envoy.admin());
        let sidecar = before(&tap.address(), of_sidecar);
        let mut hook = sidecar.hook(of_hook);
        wait_for("the hook's end", PATIENCE, || {
            assert_eq!(envoy.ready(), "LIVE");
            hook.try_wait()
        });
        assert_ends(&mut hook, 0, LEFT_ALONE);
        let took = hook.wait(PATIENCE).took;
        assert_took("the hook", took, TOGETHER..2.0 * TOGETHER);
        let requests = tap.requests();
        assert!(requests.iter().all(|(_, line)| line.starts_with("GET ")), "{requests:#?}");
        assert_told(&sidecar, &["msg=\"drain requested\"", LEFT_ALONE]);
        let metrics = ask(sidecar.port(), "GET", "/metrics").1;
        assert_eq!(metric(&metrics, "drains_total{outcome=\"no_envoy_hook\"}"), 1);
        assert_eq!(metric(&metrics, "phase{phase=\"serving\"}"), 1);
        assert_drains(&sidecar, &envoy);
    };
    thread::scope(|scope| {
        scope.spawn(|| run(required, &[]));
        scope.spawn(|| run(&[], required));
    });
}

#[test]
fn only_a_whole_request_for_shutdown_is_envoys_hook() {
    let _turn = shared();
    let envoy = with_listener();
    let sidecar = beside(&envoy, &["--require-envoy-hook"]);
    let port = sidecar.port();
    let others = || {
        let partial = Plain::open(port);
        partial.send(b"GET /shutdown HTTP/1.1\r\nhost: localhost\r\n");
        assert_eq!(ask(port, "GET", "/healthz"), ok());
        assert_eq!(ask(port, "GET", "/metrics").0, 200);
        assert_eq!(ask(port, "POST", "/shutdown").0, 405);
        assert_eq!(ask(port, "GET", "/shutdown/").0, 404);
        partial
    };
    let _before = others();
    let mut hook = sidecar.hook(&[]);
    wait_status(&sidecar, &["\"phase\":\"delaying\""]);
    let _after = others();
    assert!(hook.running());
    assert_ends(&mut hook, 0, LEFT_ALONE);
    assert_eq!(envoy.ready(), "LIVE");
}

#[test]
fn a_required_hook_may_come_before_or_after_the_other() {
    let _turn = shared();
    let envoy = with_listener();
    let required = &["--require-envoy-hook"][..];
    for (of_sidecar, of_hook) in [(required, &[][..]), (&[], required)] {
        for exec_first in [true, false] {
            // Envoy is looked at so seldom that its hook itself must set things going.
            let args = [of_sidecar, &["--check-interval=2s"]].concat();
            let mut sidecar = scene::beside(&envoy, &args);
            let port = sidecar.port();
            let early = (!exec_first).then(|| Waiter::outside(port, PATHS[0]));
            if early.is_some() {
                wait_waiting(&sidecar, 1);
            }
            let mut exec = sidecar.hook(of_hook);
            let envoys = early.unwrap_or_else(|| {
                wait_status(&sidecar, &["\"phase\":\"delaying\""]);
                assert_eq!(envoy.ready(), "LIVE");
                Waiter::outside(port, PATHS[1])
            });
            let both = Instant::now();
            assert_ends(&mut exec, 0, DRAINED);
            let took = exec.wait(PATIENCE).at.saturating_duration_since(both);
            assert_took("the drain", took, 0.0..1.5);
            assert_eq!(envoys.answer_there(), ok());
            assert_eq!(envoy.ready(), "DRAINING");
            assert_stops(&mut sidecar);
            put_back(&envoy);
        }
    }
}

#[test]
fn envoys_hook_of_more_than_three_seconds_ago_is_another_ones() {
    let _turn = shared();
    let envoy = with_listener();
    let sidecar = beside(&envoy, &["--require-envoy-hook"]);
    let early = Waiter::outside(sidecar.port(), PATHS[0]);
    wait_waiting(&sidecar, 1);
    // The time itself is what matters here.
    thread::sleep(Duration::from_secs_f32(TOGETHER));
    let mut hook = sidecar.hook(&[]);
    wait_status(&sidecar, &["\"phase\":\"delaying\"", "\"waiters\":1,"]);
    assert_ends(&mut hook, 0, LEFT_ALONE);
    let (status, body) = early.answer_there();
    assert!(status == 200 && body.starts_with(LEFT_ALONE), "{status} {body}");
    assert_eq!(envoy.ready(), "LIVE");
    assert_drains(&sidecar, &envoy);
}

#[test]
fn the_log_says_whether_envoys_own_hook_waits_too() {
    let _turn = shared();
    let envoy = with_listener();
    let client = connect(&envoy);
    // Polled so seldom that no poll is at hand to say it with.
    let slow = || scene::beside(&envoy, &["--check-interval=4s"]);
    let (lone, both) = (slow(), slow());
    let begun = Instant::now();
    let hooks = Hooks::run(&both, true, Duration::ZERO);
    let mut hook = lone.hook(&[]);
    for (sidecar, said, unsaid) in [
        (&lone, "level=warn msg=\"Envoy's own hook did not come to /shutdown within 3s", "too"),
        (&both, "Envoy's own hook waits too: the pod is being deleted\" drain=1", "did not come"),
    ] {
        let told = sidecar.wait_log(said, PATIENCE) - begun;
        assert_took(said, told, TOGETHER..4.0);
        let other = |line: &String| line.contains("own hook") && line.contains(unsaid);
        assert!(!sidecar.log().iter().any(other), "{:#?}", sidecar.log());
        // One request at the control socket was enough for all that time.
        let asked_again = |line: &String| line.contains("route=shutdown");
        assert!(!sidecar.log().iter().any(asked_again), "{:#?}", sidecar.log());
    }
    assert_held(&lone, &mut hook, &envoy, 1);
    hooks.assert_drained_with(&both, &envoy, client);
    assert_ends(&mut hook, 0, DRAINED);
}

#[test]
fn a_lone_envoys_hook_is_let_go_after_the_start_timeout() {
    let _turn = shared();
    let envoy = with_listener();
    let sidecar = beside(&envoy, &["--start-timeout=1s"]);
    let asked = Instant::now();
    let told = (503, "no drain has begun within the start timeout\n".to_owned());
    assert_eq!(ask(sidecar.port(), "GET", PATHS[0]), told);
    let took = asked.elapsed();
    assert_took("the answer", took, 1.0..3.0);
    assert_told(&sidecar, &["no drain has begun within the start timeout of a request for /shu"]);
    wait_waiting(&sidecar, 0);
    assert_eq!(envoy.ready(), "LIVE");
    // The next one's drain begins, so that nothing lets it go.
    let (begun, client) = (Instant::now(), connect(&envoy));
    let hooks = Hooks::run(&sidecar, false, Duration::ZERO);
    wait_for("the start timeout to pass", PATIENCE, || {
        (begun.elapsed() > Duration::from_millis(1500)).then_some(())
    });
    hooks.assert_drained_with(&sidecar, &envoy, client);
}

#[test]
fn a_stranded_envoy_is_put_back_two_seconds_after_its_hook_has_hung_up() {
    let _turn = shared();
    let (awaited, other) = (with_listener(), with_listener());
    for envoy in [&awaited, &other] {
        assert_eq!(envoy.post("/healthcheck/fail").0, 200);
    }
    let sidecar = beside(&awaited, &[]);
    let envoys = Waiter::outside(sidecar.port(), PATHS[0]);
    wait_waiting(&sidecar, 1);
    // Started later, so when its Envoy is back the awaited one would be, too.
    let measure = beside(&other, &[]);
    measure.wait_log(PUT_BACK, PATIENCE);
    assert_eq!(awaited.ready(), "DRAINING");
    assert!(!envoys.is_answered());
    let left = Instant::now();
    drop(envoys);
    wait_for("Envoy to be LIVE", PATIENCE, || (awaited.ready() == "LIVE").then_some(()));
    let took = left.elapsed();
    assert_took("put back", took, 2.0..4.0);
    sidecar.wait_log(PUT_BACK, PATIENCE);
    assert_drains(&sidecar, &awaited);
}

#[test]
fn the_probe_is_answered_in_every_phase() {
    let _turn = shared();
    let envoy = with_listener();
    let mut sidecar = beside(&envoy, &["--drain-delay=300ms", "--check-delay=300ms"]);
    let (port, client) = (sidecar.port(), connect(&envoy));
    thread::scope(|scope| {
        // Its end, or a panic, ends the probes.
        let (phases, over) = mpsc::channel::<()>();
        let probes = scope.spawn(move || {
            let mut count = 0;
            while over.try_recv() == Err(TryRecvError::Empty) {
                assert_eq!(ask(port, "GET", "/healthz"), ok());
                count += 1;
                // Between two probes.
                thread::sleep(Duration::from_millis(10));
            }
            count
        });
        let in_phase = |phase: &str| {
            wait_status(&sidecar, &[&format!("\"phase\":\"{phase}\"")]);
            let metrics = ask(port, "GET", "/metrics").1;
            assert_eq!(metric(&metrics, &format!("phase{{phase=\"{phase}\"}}")), 1);
        };
        in_phase("serving");
        let hooks = Hooks::run(&sidecar, false, Duration::ZERO);
        in_phase("delaying");
        // So that it does not answer when its health checks are to be failed.
        envoy.pause();
        in_phase("failing");
        envoy.resume();
        in_phase("settling");
        in_phase("draining");
        sidecar.wait_log("open=1", PATIENCE);
        hooks.assert_drained_with(&sidecar, &envoy, client);
        in_phase("ended");
        drop(phases);
        let count = probes.join().expect("the probes");
        assert!(count > 50, "{count} probes are few");
    });
    assert_stops(&mut sidecar);
}
