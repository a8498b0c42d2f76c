//! The restart of one container alone, in a pod that lives on: whatever has died, and whenever,
//! Envoy ends up in service, and none of its clients' requests has failed.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::admin::FakeAdmin;
use crate::support::clients::KeptAlive;
use crate::support::envoy::Envoy;
use crate::support::pod::{
    DRAINED, PATHS, assert_drains, assert_stops, before, connect, with_listener,
};
use crate::support::rows::{each, each_few, named};
use crate::support::scene::{
    Waiter, arguments, assert_ends, assert_held, leave_socket, wait_open, wait_status,
};
use crate::support::sidecar::Sidecar;
use crate::support::tap::Tap;
use crate::support::{PATIENCE, net, shared, temp_dir, wait_for};

const QUICK: &str = "--check-interval=20ms";
const PUT_BACK: &str = "left so by an earlier life of this sidecar: put back in service";
const IN_SERVICE: &str = "msg=\"Envoy answers\" state=LIVE";

/// What is done again and again, so far apart, until this is ended or dropped.
struct Again<T> {
    over: mpsc::Sender<()>,
    thread: JoinHandle<Vec<T>>,
}

impl<T: Send + 'static> Again<T> {
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

    /// Ends it, and tells what came of it each time.
    fn end(self) -> Vec<T> {
        drop(self.over);
        self.thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    }
}

/// A client that sends a request, each on a connection of its own, and another.
fn requests(envoy: &Envoy) -> Again<()> {
    let port = envoy.port("http");
    Again::every(Duration::from_millis(5), move || drop(KeptAlive::open(port)))
}

/// What Envoy's readiness is, looked at every 10 ms.
fn looks(envoy: &Envoy) -> Again<String> {
    let admin = envoy.admin().clone();
    Again::every(Duration::from_millis(10), move || {
        net::request(&admin, "GET", "/ready", PATIENCE).expect("/ready").body
    })
}

/// Nobody who had looked would have seen anything else.
#[track_caller]
fn assert_all(looks: &[String], state: &str) {
    let other = looks.iter().position(|look| look.trim_end() != state);
    assert_eq!(other.map(|n| &looks[n]), None, "at {other:?} of {}", looks.len());
}

fn envoy() -> Envoy {
    Envoy::builder().http("http").tcp("tcp").start()
}

/// The sidecar that comes after this one, in the same place.
#[track_caller]
fn next_life(first: &Sidecar, admin: &str) -> Sidecar {
    let port = format!("--serve-port={}", first.port());
    let args = arguments(admin, &[QUICK, &port]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    Sidecar::launch().args(&args).control_socket(first.control_socket()).start()
}

/// Both processes of the container die when its drain has come so far.
#[track_caller]
fn die_in(first: &mut Sidecar, phase: &str) {
    let mut hook = first.hook(&[]);
    wait_status(first, &[&format!("\"phase\":\"{phase}\"")]);
    hook.kill();
    first.kill();
}

/// How a sidecar's life comes to its end.
type End = fn(&mut Sidecar, &Envoy);

/// The sidecar's options, its end, and whether that leaves Envoy out of service.
type Life = (&'static [&'static str], End, Option<bool>);

#[test]
fn envoy_is_in_service_in_the_sidecars_next_life_however_the_one_before_has_ended() {
    let _turn = shared();
    let none: &[&str] = &[];
    let rows: Vec<(&str, Life)> = vec![
        ("a crash at rest", (none, |first, _| first.kill(), Some(false))),
        ("a crash in the drain delay", {
            (&["--drain-delay=1h"], |first, _| die_in(first, "delaying"), Some(false))
        }),
        ("a crash while Envoy is to be told", {
            let end: End = |first, envoy| {
                envoy.pause();
                die_in(first, "failing");
                envoy.resume();
            };
            // It may have heard of it, and answer to nobody.
            (none, end, None)
        }),
        ("a crash in the check delay", {
            (&["--check-delay=1h"], |first, _| die_in(first, "settling"), Some(true))
        }),
        ("a crash while it counts", (none, |first, _| die_in(first, "draining"), Some(true))),
        ("a crash as the drain ends", {
            let all: &[&str] = &["--min-open-connections=99"];
            (all, |first, _| die_in(first, "ended"), Some(true))
        }),
        ("a crash some time after the end", {
            let end: End = |first, _| {
                assert_ends(&mut first.hook(&[]), 0, "within the threshold");
                first.kill();
            };
            (&["--min-open-connections=99"], end, Some(true))
        }),
        ("the drain, and SIGTERM", {
            let end: End = |first, _| {
                assert_ends(&mut first.hook(&[]), 0, "within the threshold");
                assert_stops(first);
            };
            (&["--min-open-connections=99"], end, Some(true))
        }),
        ("the end of the grace period in the drain", {
            let end: End = |first, envoy| {
                let mut hook = first.hook(&[]);
                wait_status(first, &["\"phase\":\"draining\""]);
                assert_eq!(envoy.ready(), "DRAINING");
                first.signal(Signal::SIGTERM);
                first.wait_log("signal=SIGTERM phase=draining", PATIENCE);
                hook.kill();
                first.kill();
            };
            (none, end, Some(true))
        }),
        ("no drain without Envoy's hook", {
            let end: End = |first, _| {
                assert_ends(&mut first.hook(&[]), 0, "Envoy is left alone");
                assert_stops(first);
            };
            (&["--require-envoy-hook"], end, Some(false))
        }),
        ("a crash while Envoy's hook is waited for", {
            (&["--require-envoy-hook"], |first, _| die_in(first, "delaying"), Some(false))
        }),
    ];
    each_few(named(rows), |name, (args, end, stranded)| {
        let envoy = envoy();
        let tap = Tap::unix(envoy.admin());
        let (session, requests, looks) = (connect(&envoy), requests(&envoy), looks(&envoy));
        let mut first = before(&tap.address(), args);
        // The look of the start is over, so that all that comes now is the next life's.
        first.wait_log(IN_SERVICE, PATIENCE);
        end(&mut first, &envoy);
        let second = next_life(&first, &tap.address());
        second.wait_log(IN_SERVICE, PATIENCE);
        assert_eq!(envoy.ready(), "LIVE", "{name}");
        let asked = tap.requests();
        let times =
            asked.iter().filter(|(_, line)| line.starts_with("POST /healthcheck/ok ")).count();
        let looks = looks.end();
        let seen = looks.iter().any(|look| look != "LIVE\n");
        assert_eq!(times, usize::from(stranded.unwrap_or(seen)), "{name}: {asked:#?}");
        assert!(stranded.is_none_or(|stranded| stranded == seen), "{name}: {looks:?}");
        let told = second.log().iter().filter(|line| line.contains(PUT_BACK)).count();
        assert_eq!(told, times, "{name}: {:#?}", second.log());
        assert!(session.echoes(), "{name}");
        assert!(requests.end().len() > 20, "{name}");
    });
}

#[test]
fn a_sidecar_that_dies_again_while_it_puts_envoy_back_leaves_that_to_the_next_one() {
    let _turn = shared();
    let envoy = envoy();
    let requests = requests(&envoy);
    let mut lives = vec![before(&envoy.admin_address(), &["--check-delay=1h"])];
    die_in(&mut lives[0], "settling");
    for asked in ["GET /ready ", "POST /healthcheck/ok "] {
        let tap = Tap::unix(envoy.admin());
        let mut life = next_life(&lives[0], &tap.address());
        if asked.starts_with("GET ") {
            // So that it hears no answer, which would let it go on at once.
            envoy.pause();
        }
        tap.wait_for(|line| line.starts_with(asked), PATIENCE);
        life.kill();
        envoy.resume();
        lives.push(life);
    }
    let last = next_life(&lives[0], &envoy.admin_address());
    last.wait_log(IN_SERVICE, PATIENCE);
    assert_eq!(envoy.ready(), "LIVE");
    assert!(requests.end().len() > 20);
}

/// The pod is deleted when its sidecar has died in a drain and is just being started again. The
/// kubelet then begins hooks 46 to 355 ms after the start of the process (measured).
#[test]
fn an_envoy_whose_pod_is_deleted_right_after_its_sidecars_restart_is_never_put_back() {
    let _turn = shared();
    // The exec hook, Envoy's own, and whether the second drain is over before anything would have
    // been put back.
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
    each_few(rows.into(), |name, (exec, envoys, soon)| {
        let envoy = with_listener();
        let mut first = before(&envoy.admin_address(), &[]);
        let client = connect(&envoy);
        let mut hook = first.hook(&[]);
        assert_held(&first, &mut hook, &envoy, 1);
        let looks = looks(&envoy);
        hook.kill();
        first.kill();
        let start = Instant::now();
        let second = next_life(&first, &envoy.admin_address());
        // The times themselves are what matters here.
        let wait_till = |millis| {
            thread::sleep(Duration::from_millis(millis).saturating_sub(start.elapsed()));
        };
        let port = second.port();
        let early = (envoys < exec).then(|| {
            wait_till(envoys);
            Waiter::outside(port, PATHS[0])
        });
        wait_till(exec);
        let mut exec = second.hook(&[]);
        let waiter = early.unwrap_or_else(|| {
            wait_till(envoys);
            Waiter::outside(port, PATHS[0])
        });
        if start.elapsed() > Duration::from_secs(1) {
            println!("SKIPPED: {name}, which came too late on this machine");
            return;
        }
        if !soon {
            wait_open(&second, 1);
            wait_till(3000);
            assert!(exec.running() && !waiter.is_answered(), "{name}");
        }
        drop(client);
        assert_ends(&mut exec, 0, DRAINED);
        assert_eq!(waiter.answer_there(), (200, "OK".to_owned()), "{name}");
        wait_till(3000);
        let looks = looks.end();
        assert!(looks.len() > 10, "{name}: {} looks are few", looks.len());
        assert_all(&looks, "DRAINING");
        assert!(!second.log().iter().any(|line| line.contains(PUT_BACK)), "{name}");
    });
}

#[test]
fn an_envoy_that_is_restarted_alone_is_let_go_in_service_and_comes_back_so() {
    let _turn = shared();
    let mut envoy = envoy();
    let (session, requests, looks) = (connect(&envoy), requests(&envoy), looks(&envoy));
    let tap = Tap::unix(envoy.admin());
    let sidecar = before(&tap.address(), &["--start-timeout=1s"]);
    assert_eq!(Waiter::outside(sidecar.port(), PATHS[0]).answer().0, 503);
    // From here on nobody can keep it from failing some.
    assert!(session.echoes() && requests.end().len() > 20);
    assert_all(&looks.end(), "LIVE");
    envoy.signal(Signal::SIGTERM);
    wait_for("Envoy's end", PATIENCE, || envoy.try_wait());
    envoy.restart();
    drop(KeptAlive::open(envoy.port("http")));
    assert_eq!(envoy.ready(), "LIVE");
    wait_status(&sidecar, &["\"phase\":\"serving\",\"drain\":0,"]);
    let asked = tap.requests();
    assert!(asked.iter().all(|(_, line)| line.starts_with("GET ")), "{asked:#?}");
    assert_drains(&sidecar, &envoy);
}

/// What an earlier life has left of itself, given the paths of the control socket and the ready
/// file.
type Leave = fn(&Path, &Path);

/// The socket of the sidecar's own server.
fn server(control: &Path) -> PathBuf {
    control.with_added_extension("server")
}

#[test]
fn nothing_that_an_earlier_life_has_left_begins_or_ends_a_drain() {
    let _turn = shared();
    let rows: [(&str, Leave); 8] = [
        ("nothing", |_, _| ()),
        ("a ready file", |_, ready| fs::write(ready, "drained").expect("write")),
        ("a ready file that nobody may open", |_, ready| {
            fs::write(ready, "").expect("write");
            fs::set_permissions(ready, Permissions::from_mode(0o0)).expect("set a mode");
        }),
        ("a link for a ready file", |control, ready| symlink(control, ready).expect("link")),
        ("its control socket", |control, _| leave_socket(control, 0o600)),
        ("its server's socket", |control, _| leave_socket(&server(control), 0o600)),
        ("both, and nobody may use them", |control, _| {
            leave_socket(control, 0);
            leave_socket(&server(control), 0);
        }),
        ("everything, for everybody", |control, ready| {
            leave_socket(control, 0o777);
            leave_socket(&server(control), 0o777);
            fs::write(ready, "drained").expect("write");
        }),
    ];
    let both = rows.into_iter().flat_map(|(name, leave)| {
        [true, false].map(|told| (format!("{name}, told the sidecar: {told}"), (leave, told)))
    });
    each(both.collect(), |name, (leave, told)| {
        let (admin, dir) = (FakeAdmin::unix(), temp_dir("life"));
        let (control, ready) = (dir.path().join("control"), dir.path().join("ready"));
        leave(&control, &ready);
        let ready_file = format!("--ready-file={}", ready.display());
        let ready_file = [ready_file.as_str()];
        let (of_sidecar, of_hook) =
            if told { (&ready_file[..], &[][..]) } else { (&[][..], &ready_file[..]) };
        let args = arguments(&admin.address(), of_sidecar);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let sidecar = Sidecar::launch().args(&args).control_socket(&control).start();
        wait_status(&sidecar, &["\"phase\":\"serving\",\"drain\":0,"]);
        assert!(!told || !ready.exists(), "{name}");
        admin.set_open(1);
        let mut hook = sidecar.hook(of_hook);
        wait_open(&sidecar, 1);
        assert!(hook.running(), "{name}: {:?}", hook.try_wait());
        assert!(!ready.exists(), "{name}");
        for socket in [&control, &server(&control)] {
            let mode = fs::metadata(socket).expect("a socket").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        admin.set_open(0);
        assert_ends(&mut hook, 0, DRAINED);
        assert_eq!(fs::read(&ready).expect("the ready file"), b"", "{name}");
    });
}
