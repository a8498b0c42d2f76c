//! `--injected-resource`: Envoy's overload manager closes idle connections in a drain, and at no other
//! time.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::Timeline;
use crate::support::prelude::*;

/// An Envoy that reads the file.
fn reads(file: &PressureFile) -> Builder {
    Envoy::builder().injected_resource(&file.path()).http("http").tcp("tcp")
}

const PRESSURE: &str = "overload.envoy.resource_monitors.injected_resource.pressure";

/// Asserts that an idle connection stays open, as long as it takes Envoy to close one under pressure.
#[track_caller]
fn assert_stays(envoy: &Envoy) {
    envoy.wait_stat(PRESSURE, 0);
    let client = KeptAlive::open(envoy.port("http"));
    assert!(!client.peer_closed_within(5 * MIN_IDLE), "Envoy has closed it");
    assert_eq!(client.request("/").status, 200);
}

#[test]
fn idle_connections_are_asked_to_leave_and_a_request_in_flight_is_answered() {
    let file = PressureFile::new();
    let envoy = reads(&file).start();
    let sidecar = file.beside(&envoy, &[]);
    let http = envoy.port("http");
    let (http1, http2) = (KeptAlive::open(http), Http2::open(http));
    let in_flight = KeptAlive::open(http);
    in_flight.start("/hold");
    let mut hook = sidecar.hook(&["--drain-delay=2s"]);
    wait_status(&sidecar, |status| {
        status.phase() == DRAIN_DELAY && status.elapsed_seconds() > Some(0.6)
    });
    assert!(http1.is_waiting(), "Envoy has closed it in the drain delay");
    assert_eq!(file.read(), "0.00\n");
    assert_eq!(sidecar.status().phase(), DRAIN_DELAY, "the two were read too late");
    assert_eq!(http2.last_stream(), ANY_STREAM);
    assert_eq!(http2.last_stream(), 1);
    assert!(http2.peer_closed_within(PATIENCE));
    assert!(http1.ends_within(PATIENCE));
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    assert!(in_flight.is_waiting());
    envoy.respond(1, "done");
    assert_eq!(in_flight.response(), (200, "done"));
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert!(in_flight.peer_closed_within(PATIENCE), "who closed it?");
    sidecar.assert_not_logged(HINT_PRESSURE_NOT_READ);
    sidecar.assert_not_logged(PRESSURE_NOT_WRITTEN);
}

/// Reads a file all the time, which must always be there.
struct Reader {
    values: Timeline<String>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn start(path: PathBuf) -> Self {
        let (values, is_over) = (Timeline::default(), Arc::<AtomicBool>::default());
        let (seen, over) = (values.clone(), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            let mut last = None;
            while !over.load(Ordering::Relaxed) {
                let value = fs::read_to_string(&path).expect("the file is always there");
                if last.as_ref() != Some(&value) {
                    seen.push(value.clone());
                    last = Some(value);
                }
                // Between two samples.
                thread::sleep(Duration::from_millis(2));
            }
        });
        Self { values, is_over, thread }
    }

    /// Each value, and when it was first seen.
    fn end(self) -> Vec<(Instant, f64)> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
        let number = |value: String| {
            let digits = value.strip_suffix('\n').filter(|digits| digits.len() == 4);
            digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("{value:?}"))
        };
        self.values.all().into_iter().map(|(at, value)| (at, number(value))).collect()
    }
}

#[test]
fn the_file_has_the_part_of_the_drain_timeout_that_has_passed() {
    const TIMEOUT: f64 = 10.0;
    let file = PressureFile::new();
    fs::write(file.path(), "0.57\n").expect("write");
    fs::set_permissions(file.path(), Permissions::from_mode(0o600)).expect("set a mode");
    let envoy = envoy_with_tcp();
    let sidecar = file.beside(&envoy, &[]);
    let reader = Reader::start(file.path());
    let _client = connect(&envoy);
    let started = Instant::now();
    // Nothing but the time has it written.
    let mut hook = sidecar.hook(&["--drain-timeout=10s", "--check-interval=1h"]);
    let values = reader.values.clone();
    let values = || values.all().into_iter().map(|(_, value)| value).collect::<Vec<_>>();
    // The one before the drain, and four in it.
    wait_value("values", values, |all| all.len() >= 5);
    assert_exits(&mut sidecar.run(&["release"]), 0, "released");
    assert_exits(&mut hook, 1, "released");
    assert_ne!(file.read(), "0.00\n", "the drain's outcome still holds");
    assert_exits(&mut sidecar.run(&["restore"]), 0, "");
    wait_value("the last value", values, |all| all.last().is_some_and(|last| last == "0.00\n"));
    let values = reader.end();
    let (rest, in_drain) = values.split_first().expect("a value");
    let (after, in_drain) = in_drain.split_last().expect("a value");
    assert_eq!((rest.1, after.1), (0.0, 0.0), "{values:?}");
    assert!((0.01..0.3).contains(&in_drain[0].1), "{values:?}");
    for (at, value) in in_drain {
        let passed = (*at - started).as_secs_f64() / TIMEOUT;
        assert!(*value <= passed.max(0.01) + 0.005, "{value} after {passed} of the timeout");
    }
    let mut shortest = Duration::MAX;
    for pair in in_drain.windows(2) {
        assert!(pair[0].1 < pair[1].1, "{values:?}");
        let apart = pair[1].0 - pair[0].0;
        assert!(apart > Duration::from_millis(500), "too often: {values:?}");
        shortest = shortest.min(apart);
    }
    assert!(shortest < Duration::from_millis(1600), "too seldom: {values:?}");
    let mode = fs::metadata(file.path()).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "Envoy may run as another user");
    let names = fs::read_dir(file.path().parent().expect("its directory")).expect("the directory");
    let names: Vec<_> = names.map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(names, ["pressure"], "nothing else is left");
}

#[test]
fn without_a_timeout_the_pressure_is_full_at_once_and_a_restore_takes_it_away() {
    let file = PressureFile::new();
    let envoy = reads(&file).start();
    // The option of one drain alone.
    let sidecar = Sidecar::beside(&envoy);
    assert_exits(&mut sidecar.hook(&[&file.option()]), 0, NONE_OPEN);
    file.wait("1.00");
    assert_eq!(sidecar.status().get("injected_pressure").as_f64(), Some(1.0));
    envoy.wait_stat(PRESSURE, 100);
    assert_exits(&mut sidecar.run(&["restore"]), 0, "");
    file.wait("0.00");
    wait_live(&envoy);
    assert_stays(&envoy);
}

#[test]
fn after_a_crash_in_a_drain_the_next_sidecar_takes_the_pressure_away() {
    let file = PressureFile::new();
    let envoy = reads(&file).start();
    let mut sidecar = file.beside(&envoy, &[]);
    let _client = connect(&envoy);
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    file.wait("1.00");
    hook.kill();
    sidecar.kill();
    assert_eq!(file.read(), "1.00\n");
    let next = Sidecar::builder().beside(&envoy).arg(file.option()).replacing(&sidecar).start();
    file.wait("0.00");
    next.wait_log(ENVOY_RESTORED);
    assert_stays(&envoy);
}

#[test]
fn a_file_that_cannot_be_written_is_warned_of_once_in_a_drain_and_holds_nothing_up() {
    let dir = temp_dir("pressure");
    let missing = dir.path().join("missing");
    let path = missing.join("pressure");
    let envoy = envoy_with_tcp();
    let sidecar = Sidecar::builder().beside(&envoy).arg(injected_resource(&path)).start();
    let client = connect(&envoy);
    let mut hook = sidecar.hook(&["--drain-timeout=10s"]);
    // It would be written each second.
    wait_status(&sidecar, |status| status.elapsed_seconds() > Some(2.5));
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    let not_written = logged(PRESSURE_NOT_WRITTEN).with("level", "warn");
    // At the sidecar's start, and in the drain.
    sidecar.assert_times_logged(not_written.with("path", path.display()), 2);
    // A volume may come late.
    fs::create_dir(&missing).expect("make the directory");
    sidecar.wait_log(PRESSURE_WRITTEN);
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_eq!(fs::read_dir(&missing).expect("the directory").count(), 1, "the file alone");
    sidecar.assert_times_logged(PRESSURE_NOT_WRITTEN, 2);
}

#[test]
fn an_envoy_that_does_not_read_the_file_is_hinted_at_once() {
    let kinds = ["no overload manager", "it reads another file", "it reads the file"];
    for_each_case_with_envoy(named(kinds.map(|kind| (kind, ()))), |kind, ()| {
        let (file, other) = (PressureFile::new(), PressureFile::new());
        let builder = match kind {
            "no overload manager" => Envoy::builder().tcp("tcp"),
            "it reads another file" => reads(&other),
            _ => reads(&file),
        };
        let envoy = builder.start();
        let sidecar = file.beside(&envoy, &[]);
        let client = connect(&envoy);
        let mut hook = sidecar.hook(&[]);
        let reads = kind == "it reads the file";
        if !reads {
            sidecar.wait_log(logged(HINT_PRESSURE_NOT_READ).with("drain", 1));
        }
        // Envoy has time to read it.
        wait_status(&sidecar, |status| status.elapsed_seconds() > Some(10.5));
        assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
        drop(client);
        assert_exits(&mut hook, 0, NONE_OPEN);
        sidecar.assert_times_logged(HINT_PRESSURE_NOT_READ, usize::from(!reads));
    });
}

#[test]
fn an_envoy_that_restarts_in_a_drain_asks_its_new_clients_to_leave() {
    let file = PressureFile::new();
    let mut envoy = reads(&file).start();
    let sidecar = file.beside(&envoy, &[]);
    let _client = connect(&envoy);
    // Time for the client to come.
    let mut hook = sidecar.hook(&["--check-delay=3s"]);
    wait_phase(&sidecar, CHECK_DELAY);
    file.wait("1.00");
    envoy.restart();
    let (http1, http2) = (KeptAlive::open(envoy.port("http")), Http2::open(envoy.port("http")));
    sidecar.wait_log(failing_again());
    assert_eq!(file.read(), "1.00\n");
    assert!(http1.ends_within(PATIENCE));
    assert!(http2.peer_closed_within(PATIENCE));
    assert_exits(&mut hook, 0, NONE_OPEN);
}
