//! Every fault of the admin interface, injected by the scripted one: none of them ends a drain as if
//! it had drained, and the drain continues when the fault is over.

use std::time::{Duration, Instant};

use crate::support::cases::{for_each_case, named};
use crate::support::fake_admin::{FakeAdmin, Fault, OPEN, Route, State};
use crate::support::log::{Expected, logged};
use crate::support::process::{Hook, is_emulated};
use crate::support::sidecar::Sidecar;
use crate::support::status::Status;
use crate::support::steps::{
    assert_exits, assert_logged, finish_drain, outcome, start_drain, wait_error,
    wait_open_connections, wait_phase, wait_status,
};
use crate::support::words::{
    CHECK_DELAY, DRAIN_DELAY, ENDED, FAILING_HEALTH_CHECKS, IDLE, NONE_OPEN,
    WAITING_FOR_CONNECTIONS,
};
use crate::support::{SHIPS, assert_took, wait_for, wait_until};
use envoy_shutdown_manager::observe::messages::{
    ENVOY_CALL_FAILED, ENVOY_LIVE_AGAIN, ENVOY_NOT_RESPONDING_YET, ENVOY_NOT_RESTORED,
    ENVOY_RESPONDS, ENVOY_RESPONDS_AGAIN, ENVOY_RESTORED,
};

/// Stats that show listeners and HTTP and no connection.
const NONE_CONNECTED: &str = "http.admin.downstream_cx_active: 1\n\
                      listener.admin.downstream_cx_active: 1\nserver.live: 0\n";

/// Runs each case at each kind of admin address.
fn each_over_both<T: Clone + Send>(
    rows: Vec<(String, T)>,
    run: impl Fn(&str, FakeAdmin, T) + Sync,
) {
    let both = |(name, row): (String, T)| {
        let unix = (format!("{name}, unix"), (FakeAdmin::unix as Start, row.clone()));
        [unix, (format!("{name}, tcp"), (FakeAdmin::tcp as Start, row))]
    };
    for_each_case(rows.into_iter().flat_map(both).collect(), |name, (start, row)| {
        run(name, start(), row)
    });
}

fn poll_errors(sidecar: &Sidecar, kind: &str) -> u64 {
    sidecar.metric(&format!("poll_errors_total{{kind=\"{kind}\"}}"))
}

#[track_caller]
fn last_error(sidecar: &Sidecar) -> String {
    let status = sidecar.status();
    status.last_error().unwrap_or_else(|| panic!("no error in {status:?}")).to_owned()
}

/// How often this error of the first drain was logged as a new one.
#[track_caller]
fn times_logged(sidecar: &Sidecar, error: &str) -> usize {
    let record = Expected::default().with("drain", 1).with("error", error);
    // The status shows it a moment before the log does.
    sidecar.wait_log(record.clone());
    sidecar.times_logged(record)
}

/// A drain that polls, and waits for one connection.
#[track_caller]
fn draining(admin: &FakeAdmin, args: &[&str]) -> (Sidecar, Hook) {
    let sidecar = Sidecar::builder().beside(admin).args(args).start();
    let hook = start_drain(&sidecar, admin);
    (sidecar, hook)
}

#[derive(Clone)]
struct Row {
    fault: Option<Fault>,
    kind: &'static str,
    error: &'static str,
}

impl Row {
    /// Whether a call ends by its time-out.
    fn is_slow(&self) -> bool {
        self.kind == "timeout"
    }
}

fn row(fault: Fault, kind: &'static str, error: &'static str) -> Row {
    Row { fault: Some(fault), kind, error }
}

fn raw(head: &str, body: &str) -> Fault {
    Fault::Raw(format!("{head}\r\n\r\n{body}").into())
}

/// Faults that are faults on every route; those first that take long.
fn faults() -> Vec<(String, Row)> {
    let late = "no whole response within 2s";
    let cut = "closed before the response was whole";
    let not_whole = "not a whole HTTP answer";
    let length = "it does not say how long it is";
    let slow = Fault::Slow { every: Duration::from_millis(50) };
    let ok = "HTTP/1.1 200 OK";
    named([
        ("a full backlog", Row { fault: None, kind: "timeout", error: late }),
        ("silence", row(Fault::Silent, "timeout", late)),
        ("an answer too late", row(Fault::Late(Duration::from_millis(2200)), "timeout", late)),
        ("a byte now and then", row(slow, "timeout", late)),
        ("status 500", row(Fault::Status(500), "status", "answered with status 500")),
        ("status 404", row(Fault::Status(404), "status", "answered with status 404")),
        ("status 204", row(Fault::Status(204), "status", "answered with status 204")),
        ("a redirect", row(Fault::Redirect, "status", "answered with status 302")),
        ("garbage", row(Fault::Garbage, "protocol", not_whole)),
        ("another protocol", row(Fault::NotHttp, "protocol", not_whole)),
        ("a short body", row(Fault::Truncated, "protocol", "")),
        ("a short chunk", row(Fault::TruncatedChunk, "protocol", "")),
        ("a body without end", row(Fault::Endless, "protocol", length)),
        ("a head without end", row(Fault::EndlessHead, "protocol", "")),
        ("a reset in mid-body", row(Fault::ResetMidBody, "protocol", cut)),
        ("an end at once", row(Fault::Close, "protocol", "")),
        ("half a head", row(Fault::Raw(ok.into()), "protocol", "")),
        ("a head alone", row(raw(ok, ""), "protocol", length)),
        ("a body that the end bounds", row(raw(ok, NONE_CONNECTED), "protocol", length)),
        ("a length and less", row(raw(&format!("{ok}\r\ncontent-length: 9"), ""), "protocol", "")),
        (
            "no number as length",
            row(raw(&format!("{ok}\r\ncontent-length: x"), ""), "protocol", ""),
        ),
        ("HTTP/0.9", row(Fault::Raw(NONE_CONNECTED.into()), "protocol", not_whole)),
    ])
}

/// A response in chunks that is longer than any of Envoy's.
fn chunks_without_end(line: &str) -> Fault {
    let chunk = line.repeat((64 << 10) / line.len());
    let chunk = format!("{:x}\r\n{chunk}\r\n", chunk.len());
    raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", &chunk.repeat(64))
}

fn html() -> Fault {
    Fault::Body("<!DOCTYPE html>\n<html><body>It works: 1\n</body></html>\n".to_owned())
}

/// Faults of stats, which look like a response.
fn stats_faults() -> Vec<(String, Row)> {
    let of_body = |body: String| row(Fault::Body(body), "content", "neither listener.admin nor");
    let gauge = |name: &str, value: &str| {
        row(
            Fault::Body(format!("{NONE_CONNECTED}{name}: {value}\n")),
            "content",
            "a gauge without a number",
        )
    };
    let json = r#"{"stats":[{"name":"listener.admin.downstream_cx_active","value":1}]}"#;
    let prometheus = "envoy_listener_downstream_cx_active{envoy_listener_address=\"admin\"} 1\n";
    let gzip =
        raw("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4", "\x1f\n\x08\n");
    let too_long =
        |line: &str| row(chunks_without_end(line), "too_long", "longer than Envoy's ever is");
    named([
        ("nothing at all", of_body(String::new())),
        ("no sentinels", of_body(format!("server.live: 0\n{OPEN}: 0\n"))),
        ("no gauge of any listener", of_body("server.live: 0\n".to_owned())),
        ("a page of HTML", row(html(), "content", "neither listener.admin nor")),
        ("JSON", of_body(json.to_owned())),
        ("Prometheus's form", of_body(prometheus.to_owned())),
        ("compressed", row(gzip, "content", "neither listener.admin nor")),
        ("-1", gauge(OPEN, "-1")),
        ("1.5", gauge(OPEN, "1.5")),
        ("1e3", gauge(OPEN, "1e3")),
        ("x", gauge(OPEN, "x")),
        ("no value", gauge(OPEN, "")),
        ("2^64", gauge(OPEN, "18446744073709551616")),
        ("a number of HTTP", gauge("http.x.downstream_cx_active", "-1")),
        ("a number that is not a state", gauge("server.live", "yes")),
        ("gauges without end", too_long("http.x.downstream_cx_active: 0\n")),
        ("a line without end", too_long("listener.")),
    ])
}

fn ready_faults() -> Vec<(String, Row)> {
    let body = |body: &str| row(Fault::Body(body.to_owned()), "content", "no state of Envoy's");
    named([
        ("nothing at all", body("")),
        ("another word", body("HEALTHY\n")),
        ("a state and more", body("DRAINING, more or less\n")),
        ("a page of HTML", row(html(), "content", "no state of Envoy's")),
        ("no end", row(chunks_without_end("LIVE\n"), "too_long", "longer than Envoy's ever is")),
    ])
}

/// Injects a fault on one route into a drain that polls, until it was met often; then the drain must
/// end.
fn poll_through(name: &str, mut admin: FakeAdmin, route: Route, row: Row) {
    let (sidecar, mut hook) = draining(&admin, &[]);
    assert_eq!(sidecar.metric("poll_errors_total{kind=\"refused\"}"), 0);
    let (polled, requests) = (sidecar.metric("polls_total"), admin.count(route));
    match &row.fault {
        Some(fault) => admin.fault(route, fault.clone()),
        None => admin.full_backlog(),
    }
    wait_until("the first error", || poll_errors(&sidecar, row.kind) > 0);
    // From here on, any stats that are still read show no connection.
    admin.set_open(0);
    let often = if row.is_slow() { 3 } else { 6 };
    wait_until("errors", || poll_errors(&sidecar, row.kind) >= often);

    assert!(hook.running(), "{name} ended the drain: {:?}", hook.try_wait());
    let status = sidecar.status();
    let in_progress = status.phase() == WAITING_FOR_CONNECTIONS && status.outcome().is_none();
    assert!(in_progress, "{name}: {status:?}");
    assert!(sidecar.metric("polls_total") >= polled + often, "{name}");
    let error = last_error(&sidecar);
    assert!(error.contains(&admin.admin_address()) && error.contains(row.error), "{name}: {error}");
    assert!(error.len() < 500, "{name}: {} bytes of error", error.len());
    assert_eq!(times_logged(&sidecar, &error), 1, "{name}: {}", sidecar.report());
    if row.fault.is_some() {
        let met = (admin.count(route) - requests) as u64;
        assert!(met >= often, "{name}: {met} requests");
        for kind in ["refused", "timeout", "status", "protocol", "too_long", "content", "other"] {
            let errors = poll_errors(&sidecar, kind);
            assert!(kind == row.kind || errors == 0, "{name}: {errors} of {kind}, {error}");
        }
    }
    assert_eq!(admin.count(Route::Fail), 1, "{name}: Envoy was not restored");

    match row.fault {
        Some(_) => admin.clear(route),
        None => admin.come_back(),
    }
    assert_exits(&mut hook, 0, NONE_OPEN);
    let expected = [logged(ENVOY_CALL_FAILED), logged(ENVOY_RESPONDS_AGAIN), outcome("drained")];
    assert_logged(&sidecar, &expected);
    let status = sidecar.status();
    assert!(status.last_error().is_none(), "{name}: {status:?}");
    assert_eq!(admin.count(Route::Other), 0, "{name}: it followed a redirect");
}

#[test]
fn no_fault_of_stats_ends_a_drain() {
    let rows = faults().into_iter().chain(stats_faults()).collect();
    each_over_both(rows, |name, admin, row| poll_through(name, admin, Route::Stats, row));
}

/// The stats, the hook's options, how many connections that is, and, if that matters, a part of what
/// the status says is not counted.
type OddStats = (Vec<u8>, &'static [&'static str], u64, NotCounted);

#[derive(Clone, Copy)]
enum NotCounted {
    Nothing,
    Some(&'static str),
    Unchecked,
}

/// Stats that Envoy does not return every day, but may.
fn odd_stats() -> Vec<(String, OddStats)> {
    let http = "http.admin.downstream_cx_active: 1\n";
    let listener = "listener.admin.downstream_cx_active: 1\n";
    let gauge = |name: &str, value: &str| format!("{name}.downstream_cx_active: {value}\n");
    let stats_of = |name: &[u8]| {
        let line = [b"listener.", name, b".downstream_cx_active: 1\n"].concat();
        [NONE_CONNECTED.as_bytes(), &line].concat()
    };
    let none: &[&str] = &[];
    let plain = |text: String, open| (text.into_bytes(), none, open, NotCounted::Nothing);
    let all = |lines: &str, open| plain(format!("{NONE_CONNECTED}{lines}"), open);
    let no_listeners = NotCounted::Some("hides the listeners' gauges");
    let no_http = NotCounted::Some("hides the HTTP gauges");
    let of_part = |family: &str, lines: &str, open, not_counted| {
        (format!("{family}{lines}").into_bytes(), none, open, not_counted)
    };
    let [a, b, s] = ["listener.a", "listener.b", "http.stats"];
    named([
        ("no listener", plain(NONE_CONNECTED.to_owned(), 0)),
        ("HTTP alone", of_part(http, &gauge("http.a", "2"), 2, no_listeners)),
        ("HTTP alone, and no client", of_part(http, "", 0, no_listeners)),
        ("HTTP and some listeners", of_part(http, &gauge(a, "3"), 3, no_listeners)),
        ("listeners alone", of_part(listener, &gauge(a, "2"), 2, no_http)),
        ("listeners alone, and no client", of_part(listener, "", 0, no_http)),
        ("a line twice", all(&gauge(a, "2").repeat(2), 4)),
        ("a line and another", all(&(gauge(a, "0") + &gauge(b, "0") + &gauge(a, "1")), 1)),
        ("sentinels twice", all(&NONE_CONNECTED.repeat(2), 0)),
        ("a scrape twice", all(&(gauge(a, "1") + &gauge(b, "1") + &gauge(s, "1").repeat(2)), 1)),
        ("the largest sum", all(&(gauge(a, "18446744073709551615") + &gauge(b, "2")), u64::MAX)),
        ("lines for Windows", all("listener.a.downstream_cx_active: 2\r\n", 2)),
        ("no last end of a line", all("listener.a.downstream_cx_active: 2", 2)),
        ("admin", all("listener.admin.worker_0.downstream_cx_active: 1\n", 1)),
        ("a thread's share", all(&(gauge(a, "1") + &gauge("listener.a.worker_0", "1")), 1)),
        ("worker_0", (stats_of(b"worker_0"), none, 1, NotCounted::Unchecked)),
        ("a.worker_0", (stats_of(b"a.worker_0"), none, 1, NotCounted::Unchecked)),
        ("x: y", (stats_of(b"x: y"), none, 1, NotCounted::Unchecked)),
        ("x: y, excluded", (stats_of(b"x: y"), &["--exclude=x: y"], 0, NotCounted::Unchecked)),
        ("UTF-8", (stats_of("f\u{fc}r \u{1f980}".as_bytes()), none, 1, NotCounted::Unchecked)),
        (
            "UTF-8, excluded",
            (
                stats_of("f\u{fc}r \u{1f980}".as_bytes()),
                &["--exclude=f\u{fc}r \u{1f980}"],
                0,
                NotCounted::Unchecked,
            ),
        ),
        ("no UTF-8", (stats_of(b"\xff\xfe"), none, 1, NotCounted::Unchecked)),
        (
            "no UTF-8, and what it is shown as",
            (stats_of(b"\xff"), &["--exclude=\u{fffd}"], 1, NotCounted::Unchecked),
        ),
    ])
}

#[test]
fn a_drain_waits_for_as_many_connections_as_odd_stats_may_mean() {
    each_over_both(odd_stats(), |_, admin, (stats, args, open, not_counted)| {
        let head = format!("content-type: image/png\r\ncontent-length: {}", stats.len());
        let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
        // Bytes behind its end are no part of a response.
        let response = [head.as_bytes(), &stats, b"listener.z.downstream_cx_active: 9\n"].concat();
        admin.fault(Route::Stats, Fault::Raw(response));
        let sidecar = Sidecar::beside(&admin);
        let mut hook = sidecar.hook(args);
        let hides = |status: &Status| match not_counted {
            NotCounted::Nothing => status.not_counted().is_none(),
            NotCounted::Some(part) => status.not_counted().is_some_and(|text| text.contains(part)),
            NotCounted::Unchecked => true,
        };
        if open > 0 {
            wait_open_connections(&sidecar, open);
            wait_status(&sidecar, |status| status.last_error().is_none() && hides(status));
            let polls = sidecar.metric("polls_total") + 3;
            wait_until("more polls", || sidecar.metric("polls_total") >= polls);
            hook.assert_running();
            admin.clear(Route::Stats);
        } else {
            wait_status(&sidecar, |status| status.phase() == ENDED && hides(status));
        }
        assert_exits(&mut hook, 0, NONE_OPEN);
    });
}

#[test]
fn no_fault_of_ready_ends_a_drain_that_depends_on_it() {
    let mut rows = faults();
    rows.retain(|(_, row)| row.fault.is_some());
    rows.extend(ready_faults());
    each_over_both(rows, |name, admin, row| {
        admin.hide_stats("server.");
        poll_through(name, admin, Route::Ready, row);
    });
}

#[test]
fn a_response_head_without_end_is_not_reported_as_a_closed_connection() {
    let admin = FakeAdmin::unix();
    let (sidecar, _hook) = draining(&admin, &[]);
    admin.fault(Route::Stats, Fault::EndlessHead);
    wait_until("an error", || poll_errors(&sidecar, "protocol") > 0);
    let error = last_error(&sidecar);
    assert!(!error.contains("the connection was closed"), "{error}");
}

#[test]
fn no_fault_of_failing_health_checks_passes_for_a_success() {
    each_over_both(faults(), |name, mut admin, row| {
        let sidecar = Sidecar::beside(&admin);
        match &row.fault {
            Some(fault) => admin.fault(Route::Fail, fault.clone()),
            None => admin.full_backlog(),
        }
        let mut hook = sidecar.hook(&[]);
        wait_phase(&sidecar, FAILING_HEALTH_CHECKS);
        // On a slow machine the startup check may have come before.
        let polls = admin.count(Route::Stats);
        if row.fault.is_some() {
            admin.wait_for(Route::Fail, 3);
        } else {
            wait_error(&sidecar, FAILING_HEALTH_CHECKS, "no whole response");
        }
        assert!(hook.running(), "{name} ended the drain: {:?}", hook.try_wait());
        let status = sidecar.status();
        assert!(status.phase() == FAILING_HEALTH_CHECKS, "{name}: {status:?}");
        let error = last_error(&sidecar);
        let wanted = format!("POST /healthcheck/fail on {}: ", admin.admin_address());
        assert!(error.starts_with(&wanted) && error.contains(row.error), "{name}: {error}");
        assert_eq!(times_logged(&sidecar, &error), 1, "{name}: {}", sidecar.report());
        assert_eq!((admin.count(Route::Stats), admin.state()), (polls, State::Live), "{name}");
        match row.fault {
            Some(_) => admin.clear(Route::Fail),
            None => admin.come_back(),
        }
        assert_exits(&mut hook, 0, NONE_OPEN);
        assert_eq!((admin.count(Route::Other), admin.state()), (0, State::Draining), "{name}");
    });
}

#[test]
fn no_fault_of_ready_ends_a_delay() {
    let faults = named([
        ("status 500", row(Fault::Status(500), "", "answered with status 500")),
        ("silence", row(Fault::Silent, "", "no whole response within 2s")),
        ("another word", row(Fault::Body("HEALTHY\n".to_owned()), "", "no state of Envoy's")),
        ("an end at once", row(Fault::Close, "", "")),
    ]);
    let rows = faults.into_iter().flat_map(|(name, row)| {
        [("--check-delay=3s", CHECK_DELAY), ("--drain-delay=3s", DRAIN_DELAY)]
            .map(|delay| (format!("{name}, {}", delay.0), (delay, row.clone())))
    });
    each_over_both(rows.collect(), |name, admin, ((delay, phase), row)| {
        admin.fault(Route::Ready, row.fault.clone().expect("a fault"));
        let sidecar = Sidecar::builder().beside(&admin).arg(delay).start();
        let mut hook = sidecar.hook(&[]);
        wait_status(&sidecar, |status| {
            let failed = status.error_contains(row.error) && status.error_contains("GET /ready");
            status.phase() == phase && failed
        });
        hook.assert_running();
        let error = last_error(&sidecar);
        assert_eq!(times_logged(&sidecar, &error), 1, "{name}: {}", sidecar.report());
        let exit = hook.wait();
        assert_eq!(exit.code, Some(0), "{name}: {exit:?}");
        assert_took(name, exit.took, 3.0..6.0);
        assert_eq!((admin.count(Route::Fail), poll_errors(&sidecar, "timeout")), (1, 0), "{name}");
    });
}

#[derive(Clone, Copy, Debug)]
enum Gone {
    Refusing,
    Vanished,
}

type Start = fn() -> FakeAdmin;

/// Each way of being gone, over each kind of address.
fn ways_to_go() -> [(&'static str, Start, Gone); 3] {
    [
        ("unix, refusing", FakeAdmin::unix, Gone::Refusing),
        ("unix, vanished", FakeAdmin::unix, Gone::Vanished),
        ("tcp, refusing", FakeAdmin::tcp, Gone::Refusing),
    ]
}

fn leave(admin: &mut FakeAdmin, how: Gone) -> &'static str {
    match how {
        Gone::Refusing => {
            admin.refuse();
            "connection refused"
        }
        Gone::Vanished => {
            admin.vanish();
            "there is no such socket"
        }
    }
}

#[test]
fn envoy_is_gone_in_any_phase_after_three_refusals_a_second_apart() {
    let phases = [
        (DRAIN_DELAY, "--drain-delay=60s"),
        (FAILING_HEALTH_CHECKS, "--check-delay=0s"),
        (CHECK_DELAY, "--check-delay=60s"),
        (WAITING_FOR_CONNECTIONS, "--check-delay=0s"),
    ];
    let rows = ways_to_go().into_iter().flat_map(|(name, start, how)| {
        phases.map(|(phase, option)| (format!("{name}, {phase}"), (start, how, phase, option)))
    });
    for_each_case(rows.collect(), |name, (start, how, phase, option)| {
        let mut admin = start();
        admin.set_open(1);
        let sidecar = Sidecar::builder().beside(&admin).arg(option).start();
        let mut error = "";
        if phase == FAILING_HEALTH_CHECKS {
            error = leave(&mut admin, how);
        }
        let mut hook = sidecar.hook(&[]);
        if phase != FAILING_HEALTH_CHECKS {
            wait_phase(&sidecar, phase);
            // A call in progress may be cut off first, which is another error.
            error = leave(&mut admin, how);
        }
        let since = Instant::now();
        wait_error(&sidecar, phase, error);
        assert!(hook.running(), "{name}: gone at once: {:?}", hook.try_wait());
        let error = last_error(&sidecar);
        let exit = hook.wait();
        let took = exit.at.duration_since(since);
        assert_eq!(exit.code, Some(0), "{name}: {exit:?}");
        assert!(exit.output.contains("Envoy is gone"), "{name}: {exit:?}");
        assert_took(name, took, 1.9..4.0);
        assert_eq!(times_logged(&sidecar, &error), 1, "{name}: {}", sidecar.report());
        assert_logged(&sidecar, &[logged(ENVOY_CALL_FAILED), outcome("envoy_gone")]);
        let status = sidecar.status();
        assert!(status.outcome() == Some("envoy_gone"), "{name}: {status:?}");
        if phase == WAITING_FOR_CONNECTIONS {
            assert_eq!(poll_errors(&sidecar, "refused"), 3, "{name}");
        }
    });
}

#[test]
fn two_refusals_are_not_gone() {
    let rows = ways_to_go().map(|(name, start, how)| (name, (start, how)));
    for_each_case(named(rows), |name, (start, how)| {
        let mut admin = start();
        let (sidecar, mut hook) = draining(&admin, &[]);
        for refusals in [2, 4, 6] {
            leave(&mut admin, how);
            wait_until("two refusals", || poll_errors(&sidecar, "refused") >= refusals);
            admin.come_back();
            hook.assert_running();
            admin.wait_for(Route::Stats, admin.count(Route::Stats) + 2);
            assert_eq!(poll_errors(&sidecar, "refused"), refusals, "{name}");
            wait_open_connections(&sidecar, 1);
            wait_status(&sidecar, |status| status.last_error().is_none());
        }
        finish_drain(&admin, &mut hook);
    });
}

#[test]
fn a_call_times_out_and_the_next_one_comes_after_as_long() {
    let faults = [
        ("silence", Some(Fault::Silent)),
        ("a byte now and then", Some(Fault::Slow { every: Duration::from_millis(50) })),
        ("a slow byte", Some(Fault::Slow { every: Duration::from_millis(1500) })),
    ];
    let rows = named(faults).into_iter().flat_map(|(name, fault)| {
        [("50ms", 2.0), ("3s", 3.0)]
            .map(|interval| (format!("{name}, {}", interval.0), (fault.clone(), interval)))
    });
    each_over_both(rows.collect(), |name, admin, (fault, (interval, time))| {
        let interval = format!("--check-interval={interval}");
        let sidecar = Sidecar::builder().beside(&admin).arg(&interval).start();
        admin.set_open(1);
        admin.fault(Route::Stats, fault.expect("a fault"));
        let mut hook = sidecar.hook(&[]);
        // On a busy machine what is seen late looks shorter, or longer, but not every time.
        let (mut asked, mut took) = (Vec::new(), Vec::new());
        for n in 1..=3 {
            asked.push(admin.wait_for(Route::Stats, n));
            wait_until("its end", || poll_errors(&sidecar, "timeout") >= n as u64);
            took.push(asked[n - 1].elapsed().as_secs_f32());
        }
        let bounds = |seen: &[f32], least: f32, most: f32| {
            let most = if SHIPS { most } else { 4.0 * most };
            seen.iter().any(|time| *time >= least) && seen.iter().any(|time| *time < most)
        };
        assert!(bounds(&took, time - 0.1, time + 1.5), "{name}: {took:?} s");
        // A slow Envoy is not called again for as long as the call took.
        let gaps: Vec<_> = asked.windows(2).map(|two| (two[1] - two[0]).as_secs_f32()).collect();
        assert!(bounds(&gaps, 2.0 * time - 0.2, 2.0 * time + 2.0), "{name}: {gaps:?} s");
        hook.assert_running();
        admin.set_open(0);
        admin.clear(Route::Stats);
        assert_exits(&mut hook, 0, "drained");
    });
}

#[test]
fn failing_health_checks_is_retried_after_a_fifth_of_a_second_one_five_and_each_interval() {
    let admin = FakeAdmin::unix();
    admin.fault(Route::Fail, Fault::Status(500));
    let sidecar = Sidecar::builder().beside(&admin).arg("--check-interval=700ms").start();
    let mut hook = sidecar.hook(&[]);
    let times: Vec<_> = (1..=6).map(|n| admin.wait_for(Route::Fail, n)).collect();
    for (n, pause) in [0.2, 1.0, 5.0, 0.7, 0.7].into_iter().enumerate() {
        // A request that is seen late makes the pause after it shorter.
        assert_took("the pause", times[n + 1] - times[n], 0.5 * pause..pause + 0.5);
    }
    hook.assert_running();
    wait_phase(&sidecar, FAILING_HEALTH_CHECKS);
    admin.clear(Route::Fail);
    assert_exits(&mut hook, 0, "drained");
    // A later reversal starts with the shortest pause again: see the unit tests of the machine.
    assert_eq!(admin.state(), State::Draining);
}

#[test]
fn a_drain_timeout_ends_a_drain_whose_envoy_does_not_respond() {
    let rows = named([
        ("failing health checks", (Some(Route::Fail), FAILING_HEALTH_CHECKS, "--check-delay=0s")),
        ("check delay", (Some(Route::Ready), CHECK_DELAY, "--check-delay=60s")),
        ("drain delay", (Some(Route::Ready), DRAIN_DELAY, "--drain-delay=60s")),
        ("polling", (Some(Route::Stats), WAITING_FOR_CONNECTIONS, "--check-delay=0s")),
        ("a full backlog", (None, FAILING_HEALTH_CHECKS, "--check-delay=0s")),
    ]);
    each_over_both(rows, |name, mut admin, (route, phase, option)| {
        match route {
            Some(route) => admin.fault(route, Fault::Silent),
            None => admin.full_backlog(),
        }
        let options = ["--drain-timeout=1s", option];
        let sidecar = Sidecar::builder().beside(&admin).args(options).start();
        let mut hook = sidecar.hook(&[]);
        wait_phase(&sidecar, phase);
        hook.assert_running();
        let exit = hook.wait();
        assert_eq!(exit.code, Some(1), "{name}: {exit:?}");
        assert!(exit.output.contains("gave up at the drain timeout"), "{name}: {exit:?}");
        assert_took(name, exit.took, 1.0..4.0);
        sidecar.wait_log(outcome("timed_out"));
        assert_eq!(sidecar.metric("drains_total{outcome=\"timed_out\"}"), 1, "{name}");
    });
}

#[test]
fn responses_without_end_take_no_memory() {
    if is_emulated() {
        return println!("SKIPPED: the memory is the emulator's");
    }
    let rows = named([
        ("a body", Fault::Endless),
        ("a head", Fault::EndlessHead),
        ("gauges", chunks_without_end("http.x.downstream_cx_active: 0\n")),
        ("a line", chunks_without_end("listener.")),
    ]);
    each_over_both(rows, |name, admin, fault| {
        let (sidecar, mut hook) = draining(&admin, &[]);
        let rss = sidecar.rss_bytes();
        admin.fault(Route::Stats, fault);
        let errors = || poll_errors(&sidecar, "too_long") + poll_errors(&sidecar, "protocol");
        let max = wait_for("twenty endless responses", || {
            let now = sidecar.rss_bytes();
            (errors() >= 20).then_some(now)
        });
        let max = max.max(sidecar.rss_bytes());
        hook.assert_running();
        let (kib, before) = (max >> 10, rss >> 10);
        println!("{name}: {before} KiB before, {kib} KiB after");
        assert!(max < rss + (3 << 20), "{name}: from {before} KiB to {kib} KiB");
        assert!(max < 8 << 20, "{name}: {kib} KiB");
        admin.clear(Route::Stats);
        finish_drain(&admin, &mut hook);
    });
}

#[test]
fn an_envoy_that_is_restored_is_taken_out_of_service_again() {
    let rows = named([
        ("in the check delay", (CHECK_DELAY, "--check-delay=60s", false)),
        ("in the check delay, without server.live", (CHECK_DELAY, "--check-delay=60s", true)),
        ("while polling", (WAITING_FOR_CONNECTIONS, "--check-delay=0s", false)),
        ("while polling, without server.live", (WAITING_FOR_CONNECTIONS, "--check-delay=0s", true)),
    ]);
    each_over_both(rows, |name, admin, (phase, option, hidden)| {
        admin.set_open(1);
        if hidden {
            admin.hide_stats("server.");
        }
        let sidecar = Sidecar::builder().beside(&admin).arg(option).start();
        let mut hook = sidecar.hook(&[]);
        wait_phase(&sidecar, phase);
        for fails in 2..=3 {
            assert_eq!(admin.count(Route::Fail), fails - 1, "{name}");
            admin.set_state(State::Live);
            // No client is connected, which does not count while a balancer may still send one.
            admin.wait_for(Route::Fail, fails);
            wait_until("it to be out of service", || admin.state() == State::Draining);
            wait_phase(&sidecar, phase);
            hook.assert_running();
        }
        assert_eq!(sidecar.times_logged(ENVOY_LIVE_AGAIN), 2, "{name}: {}", sidecar.report());
        assert_eq!(admin.count(Route::Ready) > 0, hidden || phase == CHECK_DELAY, "{name}");
        if phase == WAITING_FOR_CONNECTIONS {
            finish_drain(&admin, &mut hook);
        }
    });
}

#[test]
fn an_envoy_that_is_restored_without_a_client_does_not_count_as_drained() {
    each_over_both(named([("server.live", false), ("/ready", true)]), |name, admin, hidden| {
        if hidden {
            admin.hide_stats("server.");
        }
        let (sidecar, mut hook) = draining(&admin, &[]);
        // From here on a success at failing changes nothing: it stays LIVE.
        admin.fault(Route::Fail, Fault::Body("OK\n".to_owned()));
        admin.set_state(State::Live);
        admin.wait_for(Route::Fail, 2);
        admin.set_open(0);
        admin.wait_for(Route::Fail, admin.count(Route::Fail) + 3);
        hook.assert_running();
        let status = sidecar.status();
        assert!(status.outcome().is_none(), "{name}: {status:?}");
        admin.clear(Route::Fail);
        assert_exits(&mut hook, 0, NONE_OPEN);
        assert_eq!(admin.state(), State::Draining, "{name}");
    });
}

#[test]
fn localhost_is_an_admin_address() {
    let admin = FakeAdmin::tcp();
    let address = admin.admin_address().replace("127.0.0.1", "localhost");
    assert!(address.starts_with("localhost:"), "{address}");
    admin.set_open(1);
    let sidecar = Sidecar::builder().admin(&address).start();
    let mut hook = sidecar.hook(&[]);
    wait_open_connections(&sidecar, 1);
    assert_eq!(sidecar.status().admin_address(), address);
    finish_drain(&admin, &mut hook);
}

#[test]
fn an_unknown_host_name_is_an_error_and_not_gone() {
    let builder = Sidecar::builder().admin("no-such-host.invalid:1");
    let sidecar = builder.arg("--drain-timeout=9s").start();
    let threads = sidecar.threads();
    let mut hook = sidecar.hook(&[]);
    wait_error(&sidecar, FAILING_HEALTH_CHECKS, "");
    let error = last_error(&sidecar);
    let expected = "the name no-such-host.invalid is not known";
    assert!(error.contains(expected) || error.contains("no whole response within 2s"), "{error}");
    // By then it was tried four times or more, whichever of the two it was.
    let exit = wait_for("seven seconds of the drain", || {
        let status = sidecar.status();
        assert!(status.phase() == FAILING_HEALTH_CHECKS, "{status:?}");
        assert!(sidecar.threads() <= threads + 12, "{} threads", sidecar.threads());
        (status.elapsed_seconds()? >= 7.0).then(|| hook.try_wait())
    });
    assert!(exit.is_none(), "it is not gone: {exit:?}");
    let exit = hook.wait();
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert_took("the hook", exit.took, 9.0..12.0);
    wait_until("the look-ups' threads to end", || sidecar.threads() <= threads + 4);
}

/// The sidecar's first check of Envoy, 2 s after its start.
#[test]
fn a_sidecar_checks_envoy_after_its_start() {
    let (none, no_restore): (&[&str], &[&str]) = (&[], &["--no-restore"]);
    // Envoy's state, the options, how often it is restored, what is logged and what is not.
    let rows = named([
        ("LIVE", (State::Live, none, 0, ENVOY_RESPONDS, ENVOY_RESTORED)),
        ("DRAINING", (State::Draining, none, 1, ENVOY_RESTORED, ENVOY_NOT_RESTORED)),
        ("DRAINING, --no-restore", {
            (State::Draining, no_restore, 0, ENVOY_NOT_RESTORED, ENVOY_RESTORED)
        }),
        ("LIVE, --no-restore", (State::Live, no_restore, 0, ENVOY_RESPONDS, ENVOY_NOT_RESTORED)),
    ]);
    each_over_both(rows, |name, admin, (state, args, times, message, other)| {
        admin.set_state(state);
        let started = Instant::now();
        let sidecar = Sidecar::builder().beside(&admin).args(args).start();
        sidecar.wait_log(ENVOY_RESPONDS);
        assert!(sidecar.times_logged(message) > 0, "{name}: {}", sidecar.report());
        sidecar.assert_not_logged(other);
        let live = sidecar.times_logged(logged(ENVOY_RESPONDS).with("state", "LIVE")) > 0;
        assert_eq!(live, state == State::Live || times == 1, "{name}: {}", sidecar.report());
        let first = admin.wait_for(Route::Ready, 1) - started;
        assert_took(name, first, 2.0..4.0);
        if times == 1 {
            let line = admin.requests().into_iter().find(|(_, line)| line.contains("/ok"));
            let line = line.expect("a request").1;
            assert_eq!(line, "POST /healthcheck/ok HTTP/1.1", "{name}");
        }
        // Neither now nor in a drain and after it.
        assert_eq!(admin.count(Route::Ok), times, "{name}");
        assert_exits(&mut sidecar.hook(&[]), 0, "drained");
        assert_eq!(admin.count(Route::Ok), times, "{name}");
        assert_eq!(admin.state(), State::Draining, "{name}");
    });
}

#[test]
fn an_envoy_that_starts_after_its_sidecar_is_logged_once_and_never_restored() {
    let rows = ways_to_go().into_iter().flat_map(|(name, start, how)| {
        [State::Live, State::Draining]
            .map(|state| (format!("{name}, {state:?}"), (start, how, state)))
    });
    for_each_case(rows.collect(), |name, (start, how, state)| {
        let mut admin = start();
        admin.set_state(state);
        let error = leave(&mut admin, how);
        let sidecar = Sidecar::beside(&admin);
        sidecar.wait_log(ENVOY_NOT_RESPONDING_YET);
        let status = sidecar.status();
        assert!(status.phase() == IDLE && status.error_contains(error), "{status:?}");
        assert!(status.outcome().is_none(), "{name}: {status:?}");
        admin.come_back();
        sidecar.wait_log(ENVOY_RESPONDS);
        let (times, report) = (|expected| sidecar.times_logged(expected), sidecar.report());
        assert_eq!(times(logged(ENVOY_NOT_RESPONDING_YET)), 1, "{name}: {report}");
        let shown = if state == State::Live { "LIVE" } else { "DRAINING" };
        let responds = logged(ENVOY_RESPONDS).with("state", shown);
        assert_eq!(times(responds), 1, "{name}: {report}");
        let left = times(logged(ENVOY_NOT_RESTORED)) > 0;
        assert_eq!(left, state == State::Draining, "{name}: {report}");
        assert_eq!((admin.count(Route::Ok), admin.count(Route::Fail)), (0, 0), "{name}");
        assert_eq!(admin.state(), state, "{name}");
    });
}

#[test]
fn an_envoy_that_fails_the_first_checks_is_logged_once_and_then_restored() {
    let faults = [("status 500", Fault::Status(500)), ("an end at once", Fault::Close)];
    each_over_both(named(faults), |name, admin, fault| {
        admin.set_state(State::Draining);
        admin.fault(Route::Ready, fault);
        let sidecar = Sidecar::beside(&admin);
        admin.wait_for(Route::Ready, 2);
        assert_eq!(admin.count(Route::Ok), 0, "{name}");
        admin.clear(Route::Ready);
        sidecar.wait_log(ENVOY_RESPONDS);
        let times = sidecar.times_logged(ENVOY_NOT_RESPONDING_YET);
        assert_eq!(times, 1, "{name}: {}", sidecar.report());
        assert_eq!((admin.count(Route::Ok), admin.state()), (1, State::Live), "{name}");
    });
}

#[test]
fn an_envoy_that_is_being_drained_is_not_restored() {
    let admin = FakeAdmin::unix();
    admin.set_state(State::Draining);
    let (sidecar, mut hook) = draining(&admin, &[]);
    // The startup check would have been at two seconds.
    wait_for("three seconds of the drain", || {
        let status = sidecar.status();
        (status.elapsed_seconds()? >= 3.0).then_some(())
    });
    hook.assert_running();
    assert_eq!((admin.count(Route::Ok), admin.state()), (0, State::Draining));
    finish_drain(&admin, &mut hook);
    assert_eq!((admin.count(Route::Ok), admin.state()), (0, State::Draining));
}
