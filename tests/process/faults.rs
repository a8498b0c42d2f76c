//! Everything that can be wrong with the admin interface, played by the scripted one: a drain is
//! never ended by it as if it were drained, and goes on when it is over.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

use std::time::{Duration, Instant};

use crate::support::admin::{FakeAdmin, Fault, OPEN, Route, State};
use crate::support::rows::{each, named};
use crate::support::scene::{assert_ends, assert_told, before, wait_status};
use crate::support::sidecar::{Hook, Sidecar, is_emulated};
use crate::support::{PATIENCE, SHIPS, assert_took, shared, wait_for};

const DELAYING: &str = "\"phase\":\"delaying\"";
const FAILING: &str = "\"phase\":\"failing\"";
const SETTLING: &str = "\"phase\":\"settling\"";
const DRAINING: &str = "\"phase\":\"draining\"";

/// What a poll brings that shows listeners and HTTP and no connection.
const NOBODY: &str = "http.admin.downstream_cx_active: 1\n\
                      listener.admin.downstream_cx_active: 1\nserver.live: 0\n";

/// Does it with each of these at each kind of admin address.
fn each_over_both<T: Clone + Send>(
    rows: Vec<(String, T)>,
    run: impl Fn(&str, FakeAdmin, T) + Sync,
) {
    let both = |(name, row): (String, T)| {
        let unix = (format!("{name}, unix"), (FakeAdmin::unix as Start, row.clone()));
        [unix, (format!("{name}, tcp"), (FakeAdmin::tcp as Start, row))]
    };
    each(rows.into_iter().flat_map(both).collect(), |name, (start, row)| run(name, start(), row));
}

/// The value of a metric, named with its labels.
#[track_caller]
fn metric(sidecar: &Sidecar, name: &str) -> u64 {
    let (status, page) = sidecar.request("GET", "/metrics");
    assert_eq!(status, 200, "{page}");
    let line =
        page.lines().find_map(|line| line.strip_prefix("envoy_shutdown_")?.strip_prefix(name));
    let Some(value) = line else { panic!("no {name} in {page}") };
    value.trim().parse().expect(name)
}

fn poll_errors(sidecar: &Sidecar, kind: &str) -> u64 {
    metric(sidecar, &format!("poll_errors_total{{kind=\"{kind}\"}}"))
}

/// The last error, as JSON and the log have it between their quotes.
#[track_caller]
fn last_error(sidecar: &Sidecar) -> String {
    let status = sidecar.status();
    let mut escaped = false;
    let Some((_, rest)) = status.split_once("\"last_error\":\"") else {
        panic!("no error in {status}")
    };
    let end = rest.find(|c| {
        let end = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        end
    });
    rest[..end.expect("the end of a string")].to_owned()
}

/// How often the log has told this error of the first drain as a new one.
#[track_caller]
fn told(sidecar: &Sidecar, error: &str) -> usize {
    let error = format!("drain=1 error=\"{error}\"");
    // The status knows of it a moment before the log does.
    sidecar.wait_log(&error, PATIENCE);
    sidecar.log().iter().filter(|line| line.contains(&error)).count()
}

/// A drain that polls, held by a connection.
#[track_caller]
fn draining(admin: &FakeAdmin, args: &[&str]) -> (Sidecar, Hook) {
    admin.set_open(1);
    let mut options = vec!["--check-interval=50ms"];
    options.extend(args);
    let sidecar = before(&admin.address(), &options);
    let hook = sidecar.hook(&[]);
    wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,"]);
    (sidecar, hook)
}

#[derive(Clone)]
struct Row {
    fault: Option<Fault>,
    kind: &'static str,
    says: &'static str,
}

impl Row {
    /// Whether a call meets its time-out.
    fn is_slow(&self) -> bool {
        self.kind == "timeout"
    }
}

fn row(fault: Fault, kind: &'static str, says: &'static str) -> Row {
    Row { fault: Some(fault), kind, says }
}

fn raw(head: &str, body: &str) -> Fault {
    Fault::Raw(format!("{head}\r\n\r\n{body}").into())
}

/// Faults that are faults on every route; those first that take long.
fn faults() -> Vec<(String, Row)> {
    let late = "no whole answer within 2s";
    let cut = "closed before the answer was whole";
    let not_whole = "not a complete HTTP response";
    let length = "it has no length";
    let slow = Fault::Slow { every: Duration::from_millis(50) };
    let ok = "HTTP/1.1 200 OK";
    named([
        ("a full backlog", Row { fault: None, kind: "timeout", says: late }),
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
        ("a body that the end bounds", row(raw(ok, NOBODY), "protocol", length)),
        ("a length and less", row(raw(&format!("{ok}\r\ncontent-length: 9"), ""), "protocol", "")),
        (
            "no number as length",
            row(raw(&format!("{ok}\r\ncontent-length: x"), ""), "protocol", ""),
        ),
        ("HTTP/0.9", row(Fault::Raw(NOBODY.into()), "protocol", not_whole)),
    ])
}

/// An answer in chunks that is longer than any of Envoy's.
fn chunks_without_end(line: &str) -> Fault {
    let chunk = line.repeat((64 << 10) / line.len());
    let chunk = format!("{:x}\r\n{chunk}\r\n", chunk.len());
    raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", &chunk.repeat(64))
}

fn html() -> Fault {
    Fault::Body("<!DOCTYPE html>\n<html><body>It works: 1\n</body></html>\n".to_owned())
}

/// Faults of stats, which look like an answer.
fn stats_faults() -> Vec<(String, Row)> {
    let of_body = |body: String| row(Fault::Body(body), "content", "neither listener.admin nor");
    let gauge = |name: &str, value: &str| {
        row(
            Fault::Body(format!("{NOBODY}{name}: {value}\n")),
            "content",
            "a gauge without a number",
        )
    };
    let json = r#"{"stats":[{"name":"listener.admin.downstream_cx_active","value":1}]}"#;
    let prometheus = "envoy_listener_downstream_cx_active{envoy_listener_address=\"admin\"} 1\n";
    let gzip =
        raw("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4", "\x1f\n\x08\n");
    let too_long = |line: &str| row(chunks_without_end(line), "too_long", "more than Envoy ever");
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
        ("no end", row(chunks_without_end("LIVE\n"), "too_long", "more than Envoy ever")),
    ])
}

/// Lets a drain that polls meet a fault on one route until it has met it often, and then end.
fn poll_through(name: &str, mut admin: FakeAdmin, route: Route, row: Row) {
    let (sidecar, mut hook) = draining(&admin, &[]);
    assert_eq!(metric(&sidecar, "poll_errors_total{kind=\"refused\"}"), 0);
    let (polled, requests) = (metric(&sidecar, "polls_total"), admin.count(route));
    match &row.fault {
        Some(fault) => admin.fault(route, fault.clone()),
        None => admin.full_backlog(),
    }
    wait_for("the first error", PATIENCE, || (poll_errors(&sidecar, row.kind) > 0).then_some(()));
    // Whatever is still understood of it says now that nobody is there.
    admin.set_open(0);
    let often = if row.is_slow() { 3 } else { 6 };
    wait_for("errors", PATIENCE, || (poll_errors(&sidecar, row.kind) >= often).then_some(()));

    assert!(hook.running(), "{name} ended the drain: {:?}", hook.try_wait());
    let status = sidecar.status();
    assert!(status.contains(DRAINING) && status.contains("\"outcome\":null"), "{name}: {status}");
    assert!(metric(&sidecar, "polls_total") >= polled + often, "{name}");
    let error = last_error(&sidecar);
    assert!(error.contains(&admin.address()) && error.contains(row.says), "{name}: {error}");
    assert!(error.len() < 500, "{name}: {} bytes of error", error.len());
    assert_eq!(told(&sidecar, &error), 1, "{name}: {:#?}", sidecar.log());
    if row.fault.is_some() {
        let met = (admin.count(route) - requests) as u64;
        assert!(met >= often, "{name}: {met} requests");
        for kind in ["refused", "timeout", "status", "protocol", "too_long", "content", "other"] {
            let errors = poll_errors(&sidecar, kind);
            assert!(kind == row.kind || errors == 0, "{name}: {errors} of {kind}, {error}");
        }
    }
    assert_eq!(admin.count(Route::Fail), 1, "{name}: nobody has put Envoy back");

    match row.fault {
        Some(_) => admin.clear(route),
        None => admin.come_back(),
    }
    assert_ends(&mut hook, 0, "drained: no connection is open");
    assert_told(&sidecar, &["trying again", "Envoy answers again", "outcome=drained"]);
    let status = sidecar.status();
    assert!(status.contains("\"last_error\":null"), "{name}: {status}");
    assert_eq!(admin.count(Route::Other), 0, "{name}: it was led elsewhere");
}

#[test]
fn no_fault_of_stats_ends_a_drain() {
    let _turn = shared();
    let rows = faults().into_iter().chain(stats_faults()).collect();
    each_over_both(rows, |name, admin, row| poll_through(name, admin, Route::Stats, row));
}

/// What the stats say, what the hook is told, how many connections that is, and what the status
/// says besides.
type Said = (Vec<u8>, &'static [&'static str], u64, &'static str);

/// Answers that are none of Envoy's every day, but answers.
fn odd_stats() -> Vec<(String, Said)> {
    let http = "http.admin.downstream_cx_active: 1\n";
    let listener = "listener.admin.downstream_cx_active: 1\n";
    let gauge = |name: &str, value: &str| format!("{name}.downstream_cx_active: {value}\n");
    let named_so = |name: &[u8]| {
        let line = [b"listener.", name, b".downstream_cx_active: 1\n"].concat();
        [NOBODY.as_bytes(), &line].concat()
    };
    let none: &[&str] = &[];
    let plain = |text: String, open| (text.into_bytes(), none, open, "\"not_counted\":null");
    let all = |lines: &str, open| plain(format!("{NOBODY}{lines}"), open);
    let no_listeners = "hides the listeners' gauges";
    let no_http = "hides the HTTP gauges";
    let of_part = |family: &str, lines: &str, open, says| {
        (format!("{family}{lines}").into_bytes(), none, open, says)
    };
    let [a, b, s] = ["listener.a", "listener.b", "http.stats"];
    named([
        ("no listener", plain(NOBODY.to_owned(), 0)),
        ("HTTP alone", of_part(http, &gauge("http.a", "2"), 2, no_listeners)),
        ("HTTP alone, and nobody", of_part(http, "", 0, no_listeners)),
        ("HTTP and some listeners", of_part(http, &gauge(a, "3"), 3, no_listeners)),
        ("listeners alone", of_part(listener, &gauge(a, "2"), 2, no_http)),
        ("listeners alone, and nobody", of_part(listener, "", 0, no_http)),
        ("a line twice", all(&gauge(a, "2").repeat(2), 4)),
        ("a line and another", all(&(gauge(a, "0") + &gauge(b, "0") + &gauge(a, "1")), 1)),
        ("sentinels twice", all(&NOBODY.repeat(2), 0)),
        ("a scrape twice", all(&(gauge(a, "1") + &gauge(b, "1") + &gauge(s, "1").repeat(2)), 1)),
        ("the largest sum", all(&(gauge(a, "18446744073709551615") + &gauge(b, "2")), u64::MAX)),
        ("lines for Windows", all("listener.a.downstream_cx_active: 2\r\n", 2)),
        ("no last end of a line", all("listener.a.downstream_cx_active: 2", 2)),
        ("admin", all("listener.admin.worker_0.downstream_cx_active: 1\n", 1)),
        ("a thread's share", all(&(gauge(a, "1") + &gauge("listener.a.worker_0", "1")), 1)),
        ("worker_0", (named_so(b"worker_0"), none, 1, "")),
        ("a.worker_0", (named_so(b"a.worker_0"), none, 1, "")),
        ("x: y", (named_so(b"x: y"), none, 1, "")),
        ("x: y, excluded", (named_so(b"x: y"), &["--exclude=x: y"], 0, "")),
        ("UTF-8", (named_so("f\u{fc}r \u{1f980}".as_bytes()), none, 1, "")),
        (
            "UTF-8, excluded",
            (named_so("f\u{fc}r \u{1f980}".as_bytes()), &["--exclude=f\u{fc}r \u{1f980}"], 0, ""),
        ),
        ("no UTF-8", (named_so(b"\xff\xfe"), none, 1, "")),
        ("no UTF-8, and what it is shown as", (named_so(b"\xff"), &["--exclude=\u{fffd}"], 1, "")),
    ])
}

#[test]
fn odd_stats_hold_a_drain_for_as_many_connections_as_they_may_mean() {
    let _turn = shared();
    each_over_both(odd_stats(), |name, admin, (stats, args, open, says)| {
        let head = format!("content-type: image/png\r\ncontent-length: {}", stats.len());
        let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
        // What is behind its end is no part of an answer.
        let answer = [head.as_bytes(), &stats, b"listener.z.downstream_cx_active: 9\n"].concat();
        admin.fault(Route::Stats, Fault::Raw(answer));
        let sidecar = before(&admin.address(), &["--check-interval=50ms"]);
        let mut hook = sidecar.hook(args);
        if open > 0 {
            let open = format!("\"open_connections\":{open},");
            wait_status(&sidecar, &[DRAINING, &open, "\"last_error\":null", says]);
            let polls = metric(&sidecar, "polls_total") + 3;
            wait_for("more polls", PATIENCE, || {
                (metric(&sidecar, "polls_total") >= polls).then_some(())
            });
            assert!(hook.running(), "{name}: {:?}", hook.try_wait());
            admin.clear(Route::Stats);
        } else {
            wait_status(&sidecar, &["\"phase\":\"ended\"", says]);
        }
        assert_ends(&mut hook, 0, "drained: no connection is open");
    });
}

#[test]
fn no_fault_of_ready_ends_a_drain_that_depends_on_it() {
    let _turn = shared();
    let mut rows = faults();
    rows.retain(|(_, row)| row.fault.is_some());
    rows.extend(ready_faults());
    each_over_both(rows, |name, admin, row| {
        admin.hide_stats("server.");
        poll_through(name, admin, Route::Ready, row);
    });
}

#[test]
fn a_head_without_end_is_not_called_a_closed_connection() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let (sidecar, _hook) = draining(&admin, &[]);
    admin.fault(Route::Stats, Fault::EndlessHead);
    wait_for("an error", PATIENCE, || (poll_errors(&sidecar, "protocol") > 0).then_some(()));
    let error = last_error(&sidecar);
    assert!(!error.contains("the connection was closed"), "{error}");
}

#[test]
fn no_fault_of_failing_passes_for_a_success() {
    let _turn = shared();
    each_over_both(faults(), |name, mut admin, row| {
        let sidecar = before(&admin.address(), &["--check-interval=50ms"]);
        match &row.fault {
            Some(fault) => admin.fault(Route::Fail, fault.clone()),
            None => admin.full_backlog(),
        }
        let mut hook = sidecar.hook(&[]);
        wait_status(&sidecar, &[FAILING]);
        // A slow machine may have had its first look at Envoy before.
        let polls = admin.count(Route::Stats);
        if row.fault.is_some() {
            admin.wait_for(Route::Fail, 3, PATIENCE);
        } else {
            wait_status(&sidecar, &[FAILING, "no whole answer"]);
        }
        assert!(hook.running(), "{name} ended the drain: {:?}", hook.try_wait());
        let status = sidecar.status();
        assert!(status.contains(FAILING), "{name}: {status}");
        let error = last_error(&sidecar);
        let wanted = format!("POST /healthcheck/fail on {}: ", admin.address());
        assert!(error.starts_with(&wanted) && error.contains(row.says), "{name}: {error}");
        assert_eq!(told(&sidecar, &error), 1, "{name}: {:#?}", sidecar.log());
        assert_eq!((admin.count(Route::Stats), admin.state()), (polls, State::Live), "{name}");
        match row.fault {
            Some(_) => admin.clear(Route::Fail),
            None => admin.come_back(),
        }
        assert_ends(&mut hook, 0, "drained: no connection is open");
        assert_eq!((admin.count(Route::Other), admin.state()), (0, State::Draining), "{name}");
    });
}

#[test]
fn no_fault_of_ready_ends_a_delay() {
    let _turn = shared();
    let faults = named([
        ("status 500", row(Fault::Status(500), "", "answered with status 500")),
        ("silence", row(Fault::Silent, "", "no whole answer within 2s")),
        ("another word", row(Fault::Body("HEALTHY\n".to_owned()), "", "no state of Envoy's")),
        ("an end at once", row(Fault::Close, "", "")),
    ]);
    let rows = faults.into_iter().flat_map(|(name, row)| {
        [("--check-delay=3s", SETTLING), ("--drain-delay=3s", DELAYING)]
            .map(|delay| (format!("{name}, {}", delay.0), (delay, row.clone())))
    });
    each_over_both(rows.collect(), |name, admin, ((delay, phase), row)| {
        admin.fault(Route::Ready, row.fault.clone().expect("a fault"));
        let sidecar = before(&admin.address(), &["--check-interval=50ms", delay]);
        let mut hook = sidecar.hook(&[]);
        let status = wait_status(&sidecar, &[phase, row.says, "GET /ready"]);
        assert!(hook.running(), "{name}: {:?}", hook.try_wait());
        let error = last_error(&sidecar);
        assert_eq!(told(&sidecar, &error), 1, "{name}: {status} {:#?}", sidecar.log());
        let exit = hook.wait(PATIENCE);
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

fn go(admin: &mut FakeAdmin, how: Gone) -> &'static str {
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
    let _turn = shared();
    let phases = [
        (DELAYING, "--drain-delay=60s"),
        (FAILING, "--check-interval=50ms"),
        (SETTLING, "--check-delay=60s"),
        (DRAINING, "--check-interval=50ms"),
    ];
    let rows = ways_to_go().into_iter().flat_map(|(name, start, how)| {
        phases.map(|(phase, option)| (format!("{name}, {phase}"), (start, how, phase, option)))
    });
    each(rows.collect(), |name, (start, how, phase, option)| {
        let mut admin = start();
        admin.set_open(1);
        let options = ["--check-interval=50ms", option];
        let options = if option == options[0] { &options[..1] } else { &options };
        let sidecar = before(&admin.address(), options);
        if phase == FAILING {
            go(&mut admin, how);
        }
        let mut hook = sidecar.hook(&[]);
        if phase != FAILING {
            wait_status(&sidecar, &[phase]);
            // A call in the middle may be cut off first, which is another error.
            go(&mut admin, how);
        }
        let since = Instant::now();
        let says = match how {
            Gone::Refusing => "connection refused",
            Gone::Vanished => "there is no such socket",
        };
        wait_status(&sidecar, &[phase, says]);
        assert!(hook.running(), "{name}: gone at once: {:?}", hook.try_wait());
        let error = last_error(&sidecar);
        let exit = hook.wait(PATIENCE);
        let took = exit.at.duration_since(since);
        assert_eq!(exit.code, Some(0), "{name}: {exit:?}");
        assert!(exit.output.contains("Envoy is gone"), "{name}: {exit:?}");
        assert_took(name, took, 1.9..4.0);
        assert_eq!(told(&sidecar, &error), 1, "{name}: {:#?}", sidecar.log());
        assert_told(&sidecar, &["trying again", "outcome=envoy_gone"]);
        let status = sidecar.status();
        assert!(status.contains("\"outcome\":\"envoy_gone\""), "{name}: {status}");
        if phase == DRAINING {
            assert_eq!(poll_errors(&sidecar, "refused"), 3, "{name}");
        }
    });
}

#[test]
fn two_refusals_are_not_gone() {
    let _turn = shared();
    let rows = ways_to_go().map(|(name, start, how)| (name, (start, how)));
    each(named(rows), |name, (start, how)| {
        let mut admin = start();
        let (sidecar, mut hook) = draining(&admin, &[]);
        for refusals in [2, 4, 6] {
            go(&mut admin, how);
            wait_for("two refusals", PATIENCE, || {
                (poll_errors(&sidecar, "refused") >= refusals).then_some(())
            });
            admin.come_back();
            assert!(hook.running(), "{name}: {:?}", hook.try_wait());
            admin.wait_for(Route::Stats, admin.count(Route::Stats) + 2, PATIENCE);
            assert_eq!(poll_errors(&sidecar, "refused"), refusals, "{name}");
            wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,", "\"last_error\":null"]);
        }
        assert!(hook.running(), "{name}: {:?}", hook.try_wait());
        admin.set_open(0);
        assert_ends(&mut hook, 0, "drained: no connection is open");
    });
}

#[test]
fn a_call_is_given_up_after_its_time() {
    let _turn = shared();
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
        let sidecar = before(&admin.address(), &[&interval]);
        admin.set_open(1);
        admin.fault(Route::Stats, fault.expect("a fault"));
        let mut hook = sidecar.hook(&[]);
        // What is seen late on a busy machine looks shorter, or longer, but not every time.
        let (mut asked, mut took) = (Vec::new(), Vec::new());
        for n in 1..=3 {
            asked.push(admin.wait_for(Route::Stats, n, PATIENCE));
            wait_for("its end", PATIENCE, || {
                (poll_errors(&sidecar, "timeout") >= n as u64).then_some(())
            });
            took.push(asked[n - 1].elapsed().as_secs_f32());
        }
        let bounds = |seen: &[f32], least: f32, most: f32| {
            let most = if SHIPS { most } else { 4.0 * most };
            seen.iter().any(|time| *time >= least) && seen.iter().any(|time| *time < most)
        };
        assert!(bounds(&took, time - 0.1, time + 1.5), "{name}: {took:?} s");
        // A slow Envoy is left in peace for as long as it took.
        let gaps: Vec<_> = asked.windows(2).map(|two| (two[1] - two[0]).as_secs_f32()).collect();
        assert!(bounds(&gaps, 2.0 * time - 0.2, 2.0 * time + 2.0), "{name}: {gaps:?} s");
        assert!(hook.running(), "{name}: {:?}", hook.try_wait());
        admin.set_open(0);
        admin.clear(Route::Stats);
        assert_ends(&mut hook, 0, "drained");
    });
}

#[test]
fn failing_is_tried_again_after_a_fifth_of_a_second_one_five_and_then_at_each_interval() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    admin.fault(Route::Fail, Fault::Status(500));
    let sidecar = before(&admin.address(), &["--check-interval=700ms"]);
    let mut hook = sidecar.hook(&[]);
    let times: Vec<_> = (1..=6).map(|n| admin.wait_for(Route::Fail, n, PATIENCE)).collect();
    for (n, pause) in [0.2, 1.0, 5.0, 0.7, 0.7].into_iter().enumerate() {
        // What is heard late makes the pause behind it shorter.
        assert_took("the pause", times[n + 1] - times[n], 0.5 * pause..pause + 0.5);
    }
    assert!(hook.running(), "{:?}", hook.try_wait());
    wait_status(&sidecar, &[FAILING]);
    admin.clear(Route::Fail);
    assert_ends(&mut hook, 0, "drained");
    // A later reversal begins with the shortest pause again: see the unit tests of the machine.
    assert_eq!(admin.state(), State::Draining);
}

#[test]
fn a_drain_timeout_bounds_a_drain_whose_envoy_does_not_answer() {
    let _turn = shared();
    let rows = named([
        ("failing", (Some(Route::Fail), FAILING, "--check-delay=0s")),
        ("settling", (Some(Route::Ready), SETTLING, "--check-delay=60s")),
        ("delaying", (Some(Route::Ready), DELAYING, "--drain-delay=60s")),
        ("draining", (Some(Route::Stats), DRAINING, "--check-delay=0s")),
        ("a full backlog", (None, FAILING, "--check-delay=0s")),
    ]);
    each_over_both(rows, |name, mut admin, (route, phase, option)| {
        match route {
            Some(route) => admin.fault(route, Fault::Silent),
            None => admin.full_backlog(),
        }
        let options = ["--check-interval=50ms", "--drain-timeout=1s", option];
        let sidecar = before(&admin.address(), &options);
        let mut hook = sidecar.hook(&[]);
        wait_status(&sidecar, &[phase]);
        assert!(hook.running(), "{name}: {:?}", hook.try_wait());
        let exit = hook.wait(PATIENCE);
        assert_eq!(exit.code, Some(1), "{name}: {exit:?}");
        assert!(exit.output.contains("gave up at the drain timeout"), "{name}: {exit:?}");
        assert_took(name, exit.took, 1.0..4.0);
        assert_told(&sidecar, &["outcome=timed_out"]);
        assert_eq!(metric(&sidecar, "drains_total{outcome=\"timed_out\"}"), 1, "{name}");
    });
}

#[test]
fn answers_without_end_take_no_memory() {
    let _turn = shared();
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
        let most = wait_for("twenty endless answers", PATIENCE, || {
            let now = sidecar.rss_bytes();
            (errors() >= 20).then_some(now)
        });
        let most = most.max(sidecar.rss_bytes());
        assert!(hook.running(), "{name}: {:?}", hook.try_wait());
        let (kib, before) = (most >> 10, rss >> 10);
        println!("{name}: {before} KiB before, {kib} KiB after");
        assert!(most < rss + (3 << 20), "{name}: from {before} KiB to {kib} KiB");
        assert!(most < 8 << 20, "{name}: {kib} KiB");
        admin.clear(Route::Stats);
        admin.set_open(0);
        assert_ends(&mut hook, 0, "drained");
    });
}

#[test]
fn an_envoy_that_is_put_back_is_taken_out_again() {
    let _turn = shared();
    let rows = named([
        ("settling", (SETTLING, "--check-delay=60s", false)),
        ("settling, without server.live", (SETTLING, "--check-delay=60s", true)),
        ("draining", (DRAINING, "--check-delay=0s", false)),
        ("draining, without server.live", (DRAINING, "--check-delay=0s", true)),
    ]);
    each_over_both(rows, |name, admin, (phase, option, hidden)| {
        admin.set_open(1);
        if hidden {
            admin.hide_stats("server.");
        }
        let sidecar = before(&admin.address(), &["--check-interval=50ms", option]);
        let mut hook = sidecar.hook(&[]);
        wait_status(&sidecar, &[phase]);
        for fails in 2..=3 {
            assert_eq!(admin.count(Route::Fail), fails - 1, "{name}");
            admin.set_state(State::Live);
            // Nobody is there, but that does not count while others may still send somebody.
            admin.wait_for(Route::Fail, fails, PATIENCE);
            wait_for("it to be out of service", PATIENCE, || {
                (admin.state() == State::Draining).then_some(())
            });
            wait_status(&sidecar, &[phase]);
            assert!(hook.running(), "{name}: {:?}", hook.try_wait());
        }
        let live = "Envoy is LIVE again";
        let lines = sidecar.log().iter().filter(|line| line.contains(live)).count();
        assert_eq!(lines, 2, "{name}: {:#?}", sidecar.log());
        assert_eq!(admin.count(Route::Ready) > 0, hidden || phase == SETTLING, "{name}");
        if phase == DRAINING {
            admin.set_open(0);
            assert_ends(&mut hook, 0, "drained: no connection is open");
        }
    });
}

#[test]
fn an_envoy_that_is_put_back_with_nobody_connected_is_not_drained() {
    let _turn = shared();
    each_over_both(named([("server.live", false), ("/ready", true)]), |name, admin, hidden| {
        if hidden {
            admin.hide_stats("server.");
        }
        let (sidecar, mut hook) = draining(&admin, &[]);
        // From here on a success at failing changes nothing: it stays LIVE.
        admin.fault(Route::Fail, Fault::Body("OK\n".to_owned()));
        admin.set_state(State::Live);
        admin.wait_for(Route::Fail, 2, PATIENCE);
        admin.set_open(0);
        admin.wait_for(Route::Fail, admin.count(Route::Fail) + 3, PATIENCE);
        assert!(hook.running(), "{name}: {:?}", hook.try_wait());
        let status = sidecar.status();
        assert!(status.contains("\"outcome\":null"), "{name}: {status}");
        admin.clear(Route::Fail);
        assert_ends(&mut hook, 0, "drained: no connection is open");
        assert_eq!(admin.state(), State::Draining, "{name}");
    });
}

#[test]
fn localhost_is_an_admin_address() {
    let _turn = shared();
    let admin = FakeAdmin::tcp();
    let address = admin.address().replace("127.0.0.1", "localhost");
    assert!(address.starts_with("localhost:"), "{address}");
    admin.set_open(1);
    let sidecar = before(&address, &["--check-interval=50ms"]);
    let mut hook = sidecar.hook(&[]);
    let status = wait_status(&sidecar, &[DRAINING, "\"open_connections\":1,"]);
    assert!(status.contains(&format!("\"admin_address\":\"{address}\"")), "{status}");
    assert!(hook.running(), "{:?}", hook.try_wait());
    admin.set_open(0);
    assert_ends(&mut hook, 0, "drained: no connection is open");
}

#[test]
fn a_name_that_nobody_knows_is_an_error_and_not_gone() {
    let _turn = shared();
    let options = ["--check-interval=50ms", "--drain-timeout=9s"];
    let sidecar = before("no-such-host.invalid:1", &options);
    let threads = sidecar.threads();
    let mut hook = sidecar.hook(&[]);
    wait_status(&sidecar, &[FAILING, "\"last_error\":\""]);
    let error = last_error(&sidecar);
    let expected = "the name no-such-host.invalid cannot be resolved";
    assert!(error.contains(expected) || error.contains("no whole answer within 2s"), "{error}");
    // By then it was tried four times or more, whichever of the two it was.
    let exit = wait_for("seven seconds of the drain", PATIENCE, || {
        let status = sidecar.status();
        let elapsed = status.split("\"elapsed_seconds\":").nth(1)?.split('.').next()?;
        assert!(status.contains(FAILING), "{status}");
        assert!(sidecar.threads() <= threads + 12, "{} threads", sidecar.threads());
        (elapsed.parse::<u32>().ok()? >= 7).then(|| hook.try_wait())
    });
    assert!(exit.is_none(), "it is not gone: {exit:?}");
    let exit = hook.wait(PATIENCE);
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert_took("the hook", exit.took, 9.0..12.0);
    wait_for("the look-ups' threads to end", PATIENCE, || {
        (sidecar.threads() <= threads + 4).then_some(())
    });
}

/// The sidecar's first look at Envoy, 2 s after its start.
#[test]
fn a_sidecar_looks_at_envoy_when_it_starts() {
    let _turn = shared();
    let left = "Envoy is out of service though no drain goes on, and is left so";
    let back = "put back in service";
    let none: &[&str] = &[];
    // Envoy's state, the options, how often it is put back, what the log says and what it does not.
    let rows = named([
        ("LIVE", (State::Live, none, 0, "Envoy answers", back)),
        ("DRAINING", (State::Draining, none, 1, back, left)),
        ("DRAINING, told", (State::Draining, &["--no-restore"], 0, left, back)),
        ("LIVE, told", (State::Live, &["--no-restore"], 0, "Envoy answers", left)),
    ]);
    each_over_both(rows, |name, admin, (state, args, times, says, says_not)| {
        admin.set_state(state);
        let started = Instant::now();
        let sidecar = before(&admin.address(), args);
        sidecar.wait_log("Envoy answers", PATIENCE);
        let log = sidecar.log().join("\n");
        assert!(log.contains(says) && !log.contains(says_not), "{name}: {log}");
        assert_eq!(log.contains("state=LIVE"), state == State::Live || times == 1, "{name}: {log}");
        let first = admin.wait_for(Route::Ready, 1, PATIENCE) - started;
        assert_took(name, first, 2.0..4.0);
        if times == 1 {
            let line = admin.requests().into_iter().find(|(_, line)| line.contains("/ok"));
            let line = line.expect("a request").1;
            assert_eq!(line, "POST /healthcheck/ok HTTP/1.1", "{name}");
        }
        // Neither now nor in a drain and after it.
        assert_eq!(admin.count(Route::Ok), times, "{name}");
        assert_ends(&mut sidecar.hook(&[]), 0, "drained");
        assert_eq!(admin.count(Route::Ok), times, "{name}");
        assert_eq!(admin.state(), State::Draining, "{name}");
    });
}

#[test]
fn an_envoy_that_comes_after_its_sidecar_is_told_of_once_and_never_put_back() {
    let _turn = shared();
    let rows = ways_to_go().into_iter().flat_map(|(name, start, how)| {
        [State::Live, State::Draining]
            .map(|state| (format!("{name}, {state:?}"), (start, how, state)))
    });
    each(rows.collect(), |name, (start, how, state)| {
        let mut admin = start();
        admin.set_state(state);
        let says = go(&mut admin, how);
        let sidecar = before(&admin.address(), &[]);
        sidecar.wait_log("Envoy does not answer yet", PATIENCE);
        let status = sidecar.status();
        assert!(status.contains("\"phase\":\"serving\"") && status.contains(says), "{status}");
        assert!(!status.contains("\"outcome\":{"), "{name}: {status}");
        admin.come_back();
        sidecar.wait_log("msg=\"Envoy answers\"", PATIENCE);
        let log = sidecar.log();
        let lines = log.iter().filter(|line| line.contains("does not answer")).count();
        assert_eq!(lines, 1, "{name}: {log:#?}");
        let shown = if state == State::Live { "state=LIVE" } else { "state=\"not LIVE\"" };
        assert!(log.join("\n").contains(shown), "{name}: {log:#?}");
        let left = log.join("\n").contains("and is left so");
        assert_eq!(left, state == State::Draining, "{name}: {log:#?}");
        assert_eq!((admin.count(Route::Ok), admin.count(Route::Fail)), (0, 0), "{name}");
        assert_eq!(admin.state(), state, "{name}");
    });
}

#[test]
fn an_envoy_that_fails_at_the_first_looks_is_told_of_once_and_then_put_back() {
    let _turn = shared();
    let faults = [("status 500", Fault::Status(500)), ("an end at once", Fault::Close)];
    each_over_both(named(faults), |name, admin, fault| {
        admin.set_state(State::Draining);
        admin.fault(Route::Ready, fault);
        let sidecar = before(&admin.address(), &[]);
        admin.wait_for(Route::Ready, 2, PATIENCE);
        assert_eq!(admin.count(Route::Ok), 0, "{name}");
        admin.clear(Route::Ready);
        sidecar.wait_log("msg=\"Envoy answers\"", PATIENCE);
        let log = sidecar.log();
        let lines = log.iter().filter(|line| line.contains("does not answer")).count();
        assert_eq!(lines, 1, "{name}: {log:#?}");
        assert_eq!((admin.count(Route::Ok), admin.state()), (1, State::Live), "{name}");
    });
}

#[test]
fn an_envoy_that_is_being_drained_is_not_put_back() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    admin.set_state(State::Draining);
    let (sidecar, mut hook) = draining(&admin, &[]);
    // The first look would have been at two seconds.
    wait_for("three seconds of the drain", PATIENCE, || {
        let status = sidecar.status();
        let elapsed = status.split("\"elapsed_seconds\":").nth(1)?.split('.').next()?;
        (elapsed.parse::<u32>().ok()? >= 3).then_some(())
    });
    assert!(hook.running(), "{:?}", hook.try_wait());
    assert_eq!((admin.count(Route::Ok), admin.state()), (0, State::Draining));
    admin.set_open(0);
    assert_ends(&mut hook, 0, "drained");
    assert_eq!((admin.count(Route::Ok), admin.state()), (0, State::Draining));
}
