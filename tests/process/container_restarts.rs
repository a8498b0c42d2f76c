//! The restart of one container alone, in a pod that lives on: whichever process has died, and
//! whenever, Envoy ends up in service, and no request of its clients has failed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::prelude::*;

/// Envoy was seen in service.
fn in_service() -> Expected {
    logged(ENVOY_RESPONDS).with("state", "LIVE")
}

/// An action that is repeated, this far apart, until it is ended or dropped.
struct Repeated<T> {
    over: mpsc::Sender<()>,
    thread: JoinHandle<Vec<T>>,
}

impl<T: Send + 'static> Repeated<T> {
    fn every(pause: Duration, mut act: impl FnMut() -> T + Send + 'static) -> Self {
        let (over, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut all = Vec::new();
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                all.push(act());
            }
            all
        });
        Self { over, thread }
    }

    /// Ends it, and returns what each action returned.
    fn end(self) -> Vec<T> {
        drop(self.over);
        self.thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    }
}

/// A client that makes one request after the other, each on a connection of its own.
fn requests(envoy: &Envoy) -> Repeated<()> {
    let port = envoy.port("http");
    Repeated::every(Duration::from_millis(5), move || drop(KeptAlive::open(port)))
}

/// Envoy's state, read every 10 ms.
fn states(envoy: &Envoy) -> Repeated<String> {
    let admin = Client::from(envoy.admin().clone());
    Repeated::every(Duration::from_millis(10), move || admin.get("/ready").body)
}

/// Asserts that Envoy was never seen in another state.
#[track_caller]
fn assert_all(states: &[String], state: &str) {
    let other = states.iter().position(|seen| seen.trim_end() != state);
    assert_eq!(other.map(|n| &states[n]), None, "at {other:?} of {}", states.len());
}

fn envoy() -> Envoy {
    Envoy::builder().http("http").tcp("tcp").start()
}

/// The sidecar that is started after this one, in the same container.
#[track_caller]
fn restarted(first: &Sidecar, envoy: &impl AsRef<Address>) -> Sidecar {
    Sidecar::builder().beside(envoy).replacing(first).start()
}

/// Both processes of the container die when its drain has reached this phase.
#[track_caller]
fn die_in(first: &mut Sidecar, phase: &str) {
    let mut hook = first.hook(&[]);
    wait_phase(first, phase);
    hook.kill();
    first.kill();
}

/// How a sidecar ends.
type End = fn(&mut Sidecar, &Envoy);

/// The sidecar's options, its end, and whether that leaves Envoy out of service.
type Run = (&'static [&'static str], End, Option<bool>);

#[test]
fn envoy_is_in_service_after_a_restart_of_the_sidecar_however_it_ended() {
    let none: &[&str] = &[];
    let rows: Vec<(&str, Run)> = vec![
        ("a crash at rest", (none, |first, _| first.kill(), Some(false))),
        ("a crash in the drain delay", {
            (&["--drain-delay=1h"], |first, _| die_in(first, DRAIN_DELAY), Some(false))
        }),
        ("a crash while health checks are failed", {
            let end: End = |first, envoy| {
                envoy.pause();
                die_in(first, FAILING_HEALTH_CHECKS);
                envoy.resume();
            };
            // Envoy may have got the request, whose response no process reads.
            (none, end, None)
        }),
        ("a crash in the check delay", {
            (&["--check-delay=1h"], |first, _| die_in(first, CHECK_DELAY), Some(true))
        }),
        (
            "a crash while connections are waited for",
            (none, |first, _| die_in(first, WAITING_FOR_CONNECTIONS), Some(true)),
        ),
        ("a crash as the drain ends", {
            let all: &[&str] = &["--min-open-connections=99"];
            (all, |first, _| die_in(first, ENDED), Some(true))
        }),
        ("a crash some time after the end", {
            let end: End = |first, _| {
                assert_exits(&mut first.hook(&[]), 0, "within the threshold");
                first.kill();
            };
            (&["--min-open-connections=99"], end, Some(true))
        }),
        ("the drain, and SIGTERM", {
            let end: End = |first, _| {
                assert_exits(&mut first.hook(&[]), 0, "within the threshold");
                assert_stops(first);
            };
            (&["--min-open-connections=99"], end, Some(true))
        }),
        ("the end of the grace period in the drain", {
            let end: End = |first, envoy| {
                let mut hook = first.hook(&[]);
                wait_phase(first, WAITING_FOR_CONNECTIONS);
                assert_eq!(envoy.ready(), "DRAINING");
                first.signal(Signal::SIGTERM);
                first.wait_log(stop_requested(Signal::SIGTERM, WAITING_FOR_CONNECTIONS));
                hook.kill();
                first.kill();
            };
            (none, end, Some(true))
        }),
        ("no drain without Envoy's hook", {
            let end: End = |first, _| {
                assert_exits(&mut first.hook(&[]), 0, LEFT_IN_SERVICE);
                assert_stops(first);
            };
            (&["--require-envoy-hook"], end, Some(false))
        }),
        ("a crash while Envoy's hook is waited for", {
            (&["--require-envoy-hook"], |first, _| die_in(first, AWAITING_ENVOY_HOOK), Some(false))
        }),
    ];
    for_each_case_with_envoy(named(rows), |name, (args, end, stranded)| {
        let envoy = envoy();
        let proxy = AdminProxy::unix(envoy.admin());
        let (session, requests, states) = (connect(&envoy), requests(&envoy), states(&envoy));
        let mut first = Sidecar::builder().beside(&proxy).args(args).start();
        // Its startup check is over, so that all later requests are the restarted one's.
        first.wait_log(in_service());
        end(&mut first, &envoy);
        let second = restarted(&first, &proxy);
        second.wait_log(in_service());
        assert_eq!(envoy.ready(), "LIVE", "{name}");
        let sent = proxy.requests();
        let times =
            sent.iter().filter(|(_, line)| line.starts_with("POST /healthcheck/ok ")).count();
        let states = states.end();
        let seen = states.iter().any(|state| state != "LIVE\n");
        assert_eq!(times, usize::from(stranded.unwrap_or(seen)), "{name}: {sent:#?}");
        assert!(stranded.is_none_or(|stranded| stranded == seen), "{name}: {states:?}");
        assert_eq!(second.times_logged(ENVOY_RESTORED), times, "{name}: {}", second.report());
        assert!(session.echoes(), "{name}");
        assert!(requests.end().len() > 20, "{name}");
    });
}

#[test]
fn a_sidecar_that_dies_while_it_restores_envoy_leaves_that_to_the_next_one() {
    let envoy = envoy();
    let requests = requests(&envoy);
    let mut sidecars = vec![Sidecar::builder().beside(&envoy).arg("--check-delay=1h").start()];
    die_in(&mut sidecars[0], CHECK_DELAY);
    for request in ["GET /ready ", "POST /healthcheck/ok "] {
        let proxy = AdminProxy::unix(envoy.admin());
        let mut sidecar = restarted(&sidecars[0], &proxy);
        if request.starts_with("GET ") {
            // So that it gets no response, after which it would continue at once.
            envoy.pause();
        }
        proxy.wait_for(request);
        sidecar.kill();
        envoy.resume();
        sidecars.push(sidecar);
    }
    let last = restarted(&sidecars[0], &envoy);
    last.wait_log(in_service());
    assert_eq!(envoy.ready(), "LIVE");
    assert!(requests.end().len() > 20);
}

/// The pod is deleted when its sidecar has died in a drain and is just being started again. The
/// kubelet then starts hooks 46 to 355 ms after the start of the process (measured).
#[test]
fn an_envoy_whose_pod_is_deleted_right_after_its_sidecars_restart_is_never_restored() {
    // The exec hook, Envoy's own, and whether the second drain is over before Envoy would have been
    // restored.
    let rows = [
        (46, 46, false),
        (150, 150, true),
        (355, 355, false),
        (355, 355, true),
        (46, 355, true),
        (46, 355, false),
        (355, 46, true),
        (355, 46, false),
    ];
    let rows = rows.map(|row| (format!("{} and {} ms, soon over: {}", row.0, row.1, row.2), row));
    for_each_case_with_envoy(rows.into(), |name, (exec, envoys, soon)| {
        let envoy = envoy_with_tcp();
        let mut first = Sidecar::beside(&envoy);
        let client = connect(&envoy);
        let mut hook = first.hook(&[]);
        assert_drain_waits(&first, &mut hook, &envoy, 1);
        let states = states(&envoy);
        hook.kill();
        first.kill();
        let start = Instant::now();
        let second = restarted(&first, &envoy);
        // The times themselves are what is tested.
        let wait_till = |millis| {
            thread::sleep(Duration::from_millis(millis).saturating_sub(start.elapsed()));
        };
        let public = second.public();
        let early = (envoys < exec).then(|| {
            wait_till(envoys);
            public.start_get(HOOK_PATHS[0])
        });
        wait_till(exec);
        let mut exec = second.hook(&[]);
        let waiter = early.unwrap_or_else(|| {
            wait_till(envoys);
            public.start_get(HOOK_PATHS[0])
        });
        if start.elapsed() > Duration::from_secs(1) {
            println!("SKIPPED: {name}, which came too late on this machine");
            return;
        }
        if !soon {
            wait_open_connections(&second, 1);
            wait_till(3000);
            assert!(exec.running() && waiter.is_waiting(), "{name}");
        }
        drop(client);
        assert_exits(&mut exec, 0, NONE_OPEN);
        assert_eq!(waiter.arrived_response(), OK, "{name}");
        wait_till(3000);
        let states = states.end();
        assert!(states.len() > 10, "{name}: {} are few", states.len());
        assert_all(&states, "DRAINING");
        second.assert_not_logged(ENVOY_RESTORED);
    });
}

#[test]
fn an_envoy_that_is_restarted_alone_stays_in_service() {
    let mut envoy = envoy();
    let (session, requests, states) = (connect(&envoy), requests(&envoy), states(&envoy));
    let proxy = AdminProxy::unix(envoy.admin());
    let sidecar = Sidecar::builder().beside(&proxy).arg("--start-timeout=1s").start();
    assert_eq!(sidecar.public().get(HOOK_PATHS[0]).status, 503);
    // From here on some requests must fail.
    assert!(session.echoes() && requests.end().len() > 20);
    assert_all(&states.end(), "LIVE");
    envoy.signal(Signal::SIGTERM);
    wait_for("Envoy's end", || envoy.try_wait());
    envoy.restart();
    drop(KeptAlive::open(envoy.port("http")));
    assert_eq!(envoy.ready(), "LIVE");
    wait_status(&sidecar, Status::is_before_the_first_drain);
    let sent = proxy.requests();
    assert!(sent.iter().all(|(_, line)| line.starts_with("GET ")), "{sent:#?}");
    assert_pod_drains(&sidecar, &envoy);
}

/// What a previous run has left, given the paths of the control socket and the ready file.
type Leave = fn(&Path, &Path);

#[test]
fn nothing_that_a_previous_run_has_left_starts_or_ends_a_drain() {
    let rows: [(&str, Leave); 7] = [
        ("nothing", |_, _| ()),
        ("a ready file", |_, ready| fs::write(ready, "drained").expect("write")),
        ("a ready file that no user may open", |_, ready| {
            fs::write(ready, "").expect("write");
            fs::set_permissions(ready, Permissions::from_mode(0o0)).expect("set a mode");
        }),
        ("a link for a ready file", |control, ready| symlink(control, ready).expect("link")),
        ("its control socket", |control, _| leave_stale_socket(control, 0o600)),
        ("a control socket that no user may use", |control, _| leave_stale_socket(control, 0)),
        ("everything, for all users", |control, ready| {
            leave_stale_socket(control, 0o777);
            fs::write(ready, "drained").expect("write");
        }),
    ];
    let both = rows.into_iter().flat_map(|(name, leave)| {
        [true, false]
            .map(|sidecars| (format!("{name}, sidecar's option: {sidecars}"), (leave, sidecars)))
    });
    for_each_case(both.collect(), |name, (leave, sidecars)| {
        let (admin, dir) = (FakeAdmin::unix(), temp_dir("restart"));
        let (control, ready) = (dir.path().join("control"), dir.path().join("ready"));
        leave(&control, &ready);
        let ready_file = format!("--ready-file={}", ready.display());
        let ready_file = [ready_file.as_str()];
        let (of_sidecar, of_hook) =
            if sidecars { (&ready_file[..], &[][..]) } else { (&[][..], &ready_file[..]) };
        let sidecar =
            Sidecar::builder().beside(&admin).args(of_sidecar).control_socket(&control).start();
        wait_status(&sidecar, Status::is_before_the_first_drain);
        assert!(!sidecars || !ready.exists(), "{name}");
        admin.set_open(1);
        let mut hook = sidecar.hook(of_hook);
        wait_open_connections(&sidecar, 1);
        hook.assert_running();
        assert!(!ready.exists(), "{name}");
        let mode = fs::metadata(&control).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
        admin.set_open(0);
        assert_exits(&mut hook, 0, NONE_OPEN);
        assert_eq!(fs::read(&ready).expect("the ready file"), b"", "{name}");
    });
}
