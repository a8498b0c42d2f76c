//! A pod's deletion as the kubelet does it: the exec hook in the sidecar, Envoy's own hook at the
//! public port, and SIGTERM when they have ended; and what happens where one of them is missing.

use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::prelude::*;

/// Hooks that are no further apart belong together, in seconds.
const PAIRING_WINDOW: f32 = 3.0;

#[test]
fn envoys_hook_ends_first_whichever_started_first() {
    let envoy = envoy_with_tcp();
    for gap in [0, 20, 80].map(Duration::from_millis) {
        for exec_first in [true, false] {
            let mut sidecar = Sidecar::beside(&envoy);
            let client = connect(&envoy);
            let hooks = PreStopHooks::start(&sidecar, exec_first, gap);
            hooks.assert_wait_for(&sidecar, &envoy, client);
            assert_stops(&mut sidecar);
            restore(&envoy);
        }
    }
}

#[test]
fn thirty_drains_in_a_row_lose_no_response_to_the_signal_after_the_hook() {
    let envoy = envoy_with_tcp();
    for round in 0..30 {
        let mut sidecar = Sidecar::beside(&envoy);
        let (public, client) = (sidecar.public(), connect(&envoy));
        let early = (round % 2 == 0).then(|| sidecar.hook(&[]));
        let waiters = [0, 1, 0, 1, 0].map(|path| public.start_get(HOOK_PATHS[path]));
        let mut hook = early.unwrap_or_else(|| sidecar.hook(&[]));
        wait_envoy_hooks(&sidecar, 5);
        assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
        let waiting = waiters.iter().filter(|waiter| waiter.is_waiting()).count();
        assert_eq!(waiting, 5, "hooks that wait while a client is connected");
        drop(client);
        // Without a pause, so that the signal comes as soon as it can.
        while hook.running() {}
        let twice = round % 3 == 0;
        (0..1 + u8::from(twice)).for_each(|_| sidecar.signal(Signal::SIGTERM));
        for waiter in &waiters {
            assert_eq!(waiter.arrived_response(), OK, "round {round}");
        }
        assert_exits(&mut hook, 0, NONE_OPEN);
        let exit = sidecar.wait();
        assert!(exit.code == Some(0) || twice && exit.code == Some(143), "{exit:?}");
        restore(&envoy);
    }
}

#[test]
fn a_signal_in_the_drain_leaves_the_hooks_waiting_for_its_end() {
    let (envoy, mut sidecar, client) = pod();
    let public = sidecar.public();
    let early = HOOK_PATHS.map(|path| public.start_get(path));
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_log(stop_requested(Signal::SIGTERM, WAITING_FOR_CONNECTIONS));
    let late = HOOK_PATHS.map(|path| public.start_get(path));
    wait_envoy_hooks(&sidecar, 4);
    assert_eq!(public.get("/healthz"), OK);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    let waiting = early.iter().chain(&late).filter(|waiter| waiter.is_waiting()).count();
    assert_eq!(waiting, 4, "hooks that wait while a client is connected");
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    for waiter in early.iter().chain(&late) {
        assert_eq!(waiter.arrived_response(), OK);
    }
    assert_eq!(sidecar.wait().code, Some(0));
}

#[test]
fn a_second_signal_in_the_drain_closes_all_connections_at_once() {
    let (envoy, mut sidecar, _client) = pod();
    let hooks = PreStopHooks::start_and_wait(&sidecar, &envoy);
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_log(stop_requested(Signal::SIGTERM, WAITING_FOR_CONNECTIONS));
    assert!(!hooks.envoy.ends_within(Duration::ZERO));
    sidecar.signal(Signal::SIGTERM);
    assert!(hooks.envoy.ends_within(PATIENCE), "the connection stays open");
    assert_eq!(sidecar.wait().code, Some(143));
}

/// More requests that wait than can be answered at once.
#[track_caller]
fn many_waiters(sidecar: &Sidecar) -> Vec<Connection> {
    let public = sidecar.public();
    let waiters = (0..150).map(|number| public.start_get(HOOK_PATHS[number % 2])).collect();
    wait_envoy_hooks(sidecar, 150);
    waiters
}

#[test]
fn many_waiters_have_their_responses_before_the_hook_or_the_sidecar_ends() {
    let envoy = envoy_with_tcp();
    for round in 0..6 {
        let killed = round == 0;
        let mut sidecar = Sidecar::beside(&envoy);
        let client = connect(&envoy);
        let mut hook = sidecar.hook(&[]);
        assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
        // The request of a hook, whose process takes a moment longer to end.
        let last = sidecar.control().start_get("/shutdown?drain=1");
        let waiters = many_waiters(&sidecar);
        if killed {
            hook.kill();
            sidecar.signal(Signal::SIGTERM);
            sidecar.wait_log(stop_requested(Signal::SIGTERM, WAITING_FOR_CONNECTIONS));
        }
        drop(client);
        if killed {
            assert_eq!(sidecar.wait().code, Some(0));
        } else {
            while last.is_waiting() {}
        }
        // In the opposite order of the responses.
        let late = waiters.iter().rev().filter(|waiter| !waiter.is_answered()).count();
        assert_eq!(late, 0, "waiters without a response");
        assert!(waiters.iter().all(|waiter| waiter.arrived_response() == OK));
        restore(&envoy);
    }
}

#[test]
fn a_signal_starts_a_drain_for_many_waiters() {
    let envoy = envoy_with_tcp();
    let mut sidecar = Sidecar::beside(&envoy);
    let waiters = many_waiters(&sidecar);
    assert_stops(&mut sidecar);
    for waiter in waiters {
        assert_eq!(waiter.arrived_response(), OK);
    }
    assert_eq!(envoy.ready(), "DRAINING");
}

#[test]
fn a_request_after_the_end_is_answered_at_once_while_that_holds() {
    let envoy = envoy_with_tcp();
    let mut sidecar = Sidecar::beside(&envoy);
    assert_pod_drains(&sidecar, &envoy);
    let public = sidecar.public();
    for path in HOOK_PATHS {
        let sent = Instant::now();
        assert_eq!(public.get(path), OK, "the outcome holds for a hook that comes late");
        // The second one waits until Envoy may be polled again.
        assert_took(path, sent.elapsed(), 0.0..4.0);
    }
    assert_stops(&mut sidecar);
}

#[test]
fn envoys_hook_learns_how_a_drain_ended_that_did_not_drain() {
    let mut envoy = envoy_with_tcp();
    for (code, sentence) in [
        (1, "gave up at the drain timeout: 1 open at the last poll"),
        (0, ENVOY_IS_GONE_WITH_ONE_OPEN),
    ] {
        let args = if code == 1 { &["--drain-timeout=500ms"][..] } else { &[] };
        let mut sidecar = Sidecar::builder().beside(&envoy).args(args).start();
        let _client = connect(&envoy);
        let mut hooks = PreStopHooks::start(&sidecar, false, Duration::ZERO);
        if code == 0 {
            assert_drain_waits(&sidecar, &mut hooks.exec, &envoy, 1);
            envoy.kill();
        }
        assert_exits(&mut hooks.exec, code, sentence);
        assert_eq!(hooks.envoy.arrived_response(), (200, format!("{sentence}\n")));
        if code == 0 {
            // Envoy is gone still, so one that comes late learns the same.
            assert_eq!(sidecar.public().get(HOOK_PATHS[1]), (200, format!("{sentence}\n")));
        }
        assert_stops(&mut sidecar);
        if code == 1 {
            restore(&envoy);
        }
    }
}

/// Two thousand requests wait and disconnect, 200 at a time, in every way.
#[track_caller]
fn assert_disconnects_leave_nothing(sidecar: &Sidecar) {
    let public = sidecar.public();
    let (fds, threads) = (sidecar.fds(), sidecar.threads());
    for batch in 0..10 {
        let waiters = [0; 200].map(|_| public.start_get(HOOK_PATHS[batch % 2]));
        // The others disconnect at once, perhaps before their request was read.
        if batch % 4 < 2 {
            wait_envoy_hooks(sidecar, 200);
            // The backend gets one request, with its connection's two ends and a thread.
            let (all, more) = (sidecar.fds(), sidecar.threads().saturating_sub(threads));
            assert!(all < fds + 220 && more < 20, "{all} descriptors, {more} threads more");
        }
        for waiter in waiters {
            if batch % 2 == 0 { drop(waiter) } else { waiter.reset() }
        }
        wait_envoy_hooks(sidecar, 0);
    }
    // While a hook polls every second, tiny_http keeps one thread more than it needs.
    let released = |now: &(usize, usize)| now.0 < threads + 4 && now.1 <= fds;
    wait_value("threads and descriptors to be as before", || resources(sidecar), released);
    wait_envoy_hooks(sidecar, 0);
}

#[test]
fn thousands_of_disconnects_leave_nothing_behind() {
    let envoy = envoy_with_tcp();
    let sidecar = Sidecar::beside(&envoy);
    assert_disconnects_leave_nothing(&sidecar);
    let client = connect(&envoy);
    let mut hook = sidecar.hook(&[]);
    hook.wait_line(&format!("{WAITING_FOR_CONNECTIONS}, 1 open"));
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    assert_disconnects_leave_nothing(&sidecar);
    let waiter = sidecar.public().start_get(HOOK_PATHS[0]);
    PreStopHooks { exec: hook, envoy: waiter }.assert_wait_for(&sidecar, &envoy, client);
}

#[test]
fn a_request_that_comes_as_the_last_one_disconnects_waits() {
    let (envoy, sidecar, client) = pod();
    let public = sidecar.public();
    let mut hook = sidecar.hook(&[]);
    let mut waiter = public.start_get(HOOK_PATHS[0]);
    for _ in 0..300 {
        wait_envoy_hooks(&sidecar, 1);
        assert!(waiter.is_waiting());
        drop(waiter);
        waiter = public.start_get(HOOK_PATHS[0]);
    }
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    PreStopHooks { exec: hook, envoy: waiter }.assert_wait_for(&sidecar, &envoy, client);
}

#[test]
fn a_restarted_sidecar_has_the_port_at_once_and_drains_to_the_end() {
    let (envoy, mut first, client) = pod();
    let (port, idle) = (first.port(), Connection::open(first.port()));
    let mut lost = PreStopHooks::start_and_wait(&first, &envoy);
    // They are in one container.
    lost.exec.kill();
    first.kill();
    assert!(lost.envoy.ends_within(PATIENCE), "the connection stays open");
    // The kernel still keeps the first one's connections, whichever side has closed them.
    drop(lost);
    let second = Sidecar::builder().beside(&envoy).replacing(&first).start();
    assert_eq!(second.port(), port);
    let again = PreStopHooks::start(&second, true, Duration::ZERO);
    again.assert_wait_for(&second, &envoy, client);
    second.assert_not_logged(ENVOY_RESTORED);
    drop(idle);
}

#[test]
fn a_sidecar_that_was_frozen_in_the_drain_responds_when_it_thaws() {
    let (envoy, sidecar, client) = pod();
    let mut hooks = PreStopHooks::start_and_wait(&sidecar, &envoy);
    freeze(&sidecar);
    let late = sidecar.public().start_get(HOOK_PATHS[1]);
    drop(client);
    envoy.wait_stat("listener.tcp.downstream_cx_active", 0);
    assert!(hooks.envoy.is_waiting() && late.is_waiting() && hooks.exec.running());
    sidecar.signal(Signal::SIGCONT);
    assert_exits(&mut hooks.exec, 0, NONE_OPEN);
    assert_eq!(hooks.envoy.arrived_response(), OK);
    // Its request may be read only after the end.
    assert_eq!(late.response(), OK);
}

#[test]
fn a_lone_exec_hook_leaves_envoy_in_service_where_envoys_hook_is_required() {
    let required = &["--require-envoy-hook"][..];
    let run = |of_sidecar: &[&str], of_hook: &[&str]| {
        let envoy = envoy_with_tcp();
        let proxy = AdminProxy::unix(envoy.admin());
        let sidecar = Sidecar::builder().beside(&proxy).args(of_sidecar).start();
        let mut hook = sidecar.hook(of_hook);
        wait_for("the hook's end", || {
            assert_eq!(envoy.ready(), "LIVE");
            hook.try_wait()
        });
        assert_exits(&mut hook, 0, LEFT_IN_SERVICE);
        let took = hook.wait().took;
        assert_took("the hook", took, PAIRING_WINDOW..2.0 * PAIRING_WINDOW);
        let requests = proxy.requests();
        assert!(requests.iter().all(|(_, line)| line.starts_with("GET ")), "{requests:#?}");
        assert_logged(&sidecar, &[logged(DRAIN_STARTED), outcome("no_envoy_hook")]);
        let metrics = sidecar.public().get("/metrics").body;
        assert_eq!(metric::<u64>(&metrics, "drains_total{outcome=\"no_envoy_hook\"}"), 1);
        assert_eq!(metric::<u64>(&metrics, &format!("phase{{phase=\"{IDLE}\"}}")), 1);
        assert_pod_drains(&sidecar, &envoy);
    };
    thread::scope(|scope| {
        scope.spawn(|| run(required, &[]));
        scope.spawn(|| run(&[], required));
    });
}

#[test]
fn a_drain_by_hand_runs_though_the_sidecar_requires_envoys_hook() {
    let envoy = Envoy::builder().tcp("tcp").start();
    let own = ["--require-envoy-hook", "--drain-listeners"];
    let sidecar = Sidecar::builder().beside(&envoy).args(own).start();
    let client = connect(&envoy);
    let mut hook = sidecar.hook(&["--require-envoy-hook=false", "--drain-listeners=false"]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    let started = logged(DRAIN_STARTED).with("require_envoy_hook", "false");
    sidecar.wait_log(started.with("drain_listeners", "false"));
    // It would say what was not done, had the switch stayed on.
    sidecar.wait_log(ENVOY_HOOK_MISSING);
    sidecar.assert_not_logged(logged(ENVOY_HOOK_MISSING).containing("listeners", "not drained"));
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    // The sidecar's own options are what they were.
    restore(&envoy);
    assert_exits(&mut sidecar.hook(&[]), 0, LEFT_IN_SERVICE);
}

#[test]
fn only_a_whole_request_for_shutdown_counts_as_envoys_hook() {
    let envoy = envoy_with_tcp();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--require-envoy-hook").start();
    let public = sidecar.public();
    let others = || {
        let partial = public.send(b"GET /shutdown HTTP/1.1\r\nhost: localhost\r\n");
        assert_eq!(public.get("/healthz"), OK);
        assert_eq!(public.get("/metrics").status, 200);
        assert_eq!(public.post("/shutdown").status, 405);
        assert_eq!(public.get("/shutdown/").status, 404);
        partial
    };
    let _before = others();
    let mut hook = sidecar.hook(&[]);
    wait_phase(&sidecar, AWAITING_ENVOY_HOOK);
    let _after = others();
    hook.assert_running();
    assert_exits(&mut hook, 0, LEFT_IN_SERVICE);
    assert_eq!(envoy.ready(), "LIVE");
}

#[test]
fn a_required_hook_may_come_before_or_after_the_other() {
    let envoy = envoy_with_tcp();
    let required = &["--require-envoy-hook"][..];
    for (of_sidecar, of_hook) in [(required, &[][..]), (&[], required)] {
        for exec_first in [true, false] {
            // Envoy is checked so seldom that its hook itself must continue the drain.
            let args = [of_sidecar, &["--check-interval=2s"]].concat();
            let mut sidecar = Sidecar::builder().beside(&envoy).args(&args).start();
            let public = sidecar.public();
            let early = (!exec_first).then(|| public.start_get(HOOK_PATHS[0]));
            if early.is_some() {
                wait_envoy_hooks(&sidecar, 1);
            }
            let mut exec = sidecar.hook(of_hook);
            let waiter = early.unwrap_or_else(|| {
                wait_phase(&sidecar, AWAITING_ENVOY_HOOK);
                assert_eq!(envoy.ready(), "LIVE");
                public.start_get(HOOK_PATHS[1])
            });
            let both = Instant::now();
            assert_exits(&mut exec, 0, NONE_OPEN);
            let took = exec.wait().at.saturating_duration_since(both);
            assert_took("the drain", took, 0.0..1.5);
            assert_eq!(waiter.arrived_response(), OK);
            assert_eq!(envoy.ready(), "DRAINING");
            assert_stops(&mut sidecar);
            restore(&envoy);
        }
    }
}

#[test]
fn a_request_that_waits_is_envoys_hook_however_early_it_came() {
    let envoy = envoy_with_tcp();
    let client = connect(&envoy);
    let sidecar = Sidecar::builder().beside(&envoy).arg("--require-envoy-hook").start();
    let early = sidecar.public().start_get(HOOK_PATHS[0]);
    wait_envoy_hooks(&sidecar, 1);
    // The time itself is what matters here: a busy node starts the exec hook late.
    thread::sleep(Duration::from_secs_f32(PAIRING_WINDOW + 0.3));
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_eq!(early.arrived_response(), OK);
}

#[test]
fn whether_envoys_own_hook_waits_too_is_logged() {
    let envoy = envoy_with_tcp();
    let client = connect(&envoy);
    // Polled so seldom that no poll causes the record.
    let slow = || Sidecar::builder().beside(&envoy).arg("--check-interval=4s").start();
    let (lone, both) = (slow(), slow());
    let started = Instant::now();
    let hooks = PreStopHooks::start(&both, true, Duration::ZERO);
    let mut hook = lone.hook(&[]);
    for (sidecar, level, message, other) in [
        (&lone, "warn", ENVOY_HOOK_MISSING, ENVOY_HOOK_WAITS),
        (&both, "info", ENVOY_HOOK_WAITS, ENVOY_HOOK_MISSING),
    ] {
        let at = sidecar.wait_log(logged(message).with("level", level).with("drain", 1));
        assert_took(message, at - started, PAIRING_WINDOW..4.0);
        sidecar.assert_not_logged(other);
        // One request at the control socket was enough for all that time.
        sidecar.assert_not_logged(Expected::default().with("route", "shutdown"));
    }
    assert_drain_waits(&lone, &mut hook, &envoy, 1);
    hooks.assert_wait_for(&both, &envoy, client);
    assert_exits(&mut hook, 0, NONE_OPEN);
}

#[test]
fn envoys_hook_alone_is_answered_with_503_after_the_start_timeout() {
    let envoy = envoy_with_tcp();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--start-timeout=1s").start();
    let sent = Instant::now();
    let no_drain = (503, NO_DRAIN_BODY);
    assert_eq!(sidecar.public().get(HOOK_PATHS[0]), no_drain, "Envoy alone is restarted");
    assert_took("the response", sent.elapsed(), 1.0..3.0);
    sidecar.wait_log(START_TIMEOUT_PASSED);
    wait_envoy_hooks(&sidecar, 0);
    assert_eq!(envoy.ready(), "LIVE");
    // A drain starts for the next one, which therefore waits for its end.
    let (started, client) = (Instant::now(), connect(&envoy));
    let hooks = PreStopHooks::start(&sidecar, false, Duration::ZERO);
    wait_until("the start timeout to pass", || started.elapsed() > Duration::from_millis(1500));
    hooks.assert_wait_for(&sidecar, &envoy, client);
}

#[test]
fn a_lone_envoy_hook_is_logged_before_it_is_answered() {
    let envoy = envoy_with_tcp();
    let [lone, paired] = [(); 2].map(|()| Sidecar::beside(&envoy));
    let (public, sent) = (lone.public(), Instant::now());
    let waiters = HOOK_PATHS.map(|path| public.start_get(path));
    let client = connect(&envoy);
    let hooks = PreStopHooks::start(&paired, false, Duration::from_millis(80));
    let at = lone.wait_log(logged(ENVOY_HOOK_ALONE).with("level", "warn").with("times", 1));
    assert_took("the record", at - sent, PAIRING_WINDOW..PAIRING_WINDOW + 1.5);
    assert!(waiters.iter().all(Connection::is_waiting), "they were answered");
    // There is still time for a drain by hand.
    let mut hook = lone.hook(&[]);
    assert_drain_waits(&lone, &mut hook, &envoy, 1);
    hooks.assert_wait_for(&paired, &envoy, client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    for waiter in &waiters {
        assert_eq!(waiter.arrived_response(), OK);
    }
    lone.assert_times_logged(ENVOY_HOOK_ALONE, 1);
    lone.assert_not_logged(START_TIMEOUT_PASSED);
    paired.assert_not_logged(ENVOY_HOOK_ALONE);
}

#[test]
fn a_stranded_envoy_is_restored_two_seconds_after_its_hook_has_disconnected() {
    let (held, other) = (envoy_with_tcp(), envoy_with_tcp());
    for envoy in [&held, &other] {
        assert_eq!(envoy.post("/healthcheck/fail").status, 200);
    }
    let sidecar = Sidecar::beside(&held);
    let waiter = sidecar.public().start_get(HOOK_PATHS[0]);
    wait_envoy_hooks(&sidecar, 1);
    // Started later: once its Envoy is restored, the held one would be, too.
    let later = Sidecar::beside(&other);
    later.wait_log(ENVOY_RESTORED);
    assert_eq!(held.ready(), "DRAINING", "it was restored while its hook waits");
    assert!(waiter.is_waiting(), "the hook was answered, and no drain has ended");
    let left = Instant::now();
    drop(waiter);
    wait_live(&held);
    assert_took("restored", left.elapsed(), 2.0..4.0);
    sidecar.wait_log(ENVOY_RESTORED);
    assert_pod_drains(&sidecar, &held);
}

#[test]
fn a_probe_is_answered_in_every_phase() {
    let envoy = envoy_with_tcp();
    let mut sidecar =
        Sidecar::builder().beside(&envoy).args(["--drain-delay=1s", "--check-delay=1s"]).start();
    let (public, client) = (sidecar.public(), connect(&envoy));
    thread::scope(|scope| {
        // Its end, or a panic, ends the probes.
        let (phases, over) = mpsc::channel::<()>();
        let probes = scope.spawn({
            let public = public.clone();
            move || {
                let mut count = 0;
                while over.try_recv() == Err(TryRecvError::Empty) {
                    assert_eq!(public.get("/healthz"), OK);
                    count += 1;
                    // Between two probes.
                    thread::sleep(Duration::from_millis(10));
                }
                count
            }
        });
        let in_phase = |phase: &str| {
            wait_phase(&sidecar, phase);
            let metrics = public.get("/metrics").body;
            assert_eq!(metric::<u64>(&metrics, &format!("phase{{phase=\"{phase}\"}}")), 1);
        };
        in_phase(IDLE);
        let hooks = PreStopHooks::start(&sidecar, false, Duration::ZERO);
        in_phase(DRAIN_DELAY);
        // So that it does not respond when its health checks are failed.
        envoy.pause();
        in_phase(FAILING_HEALTH_CHECKS);
        envoy.resume();
        in_phase(CHECK_DELAY);
        in_phase(WAITING_FOR_CONNECTIONS);
        sidecar.wait_log(counted(1));
        hooks.assert_wait_for(&sidecar, &envoy, client);
        in_phase(ENDED);
        drop(phases);
        let count = probes.join().expect("the probes");
        assert!(count > 50, "{count} probes are few");
    });
    assert_stops(&mut sidecar);
}
