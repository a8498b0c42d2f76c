//! Faults of single calls: of polls, of the check of readiness, and of failing health checks.

use std::time::Duration;

use super::{
    NONE_CONNECTED, chunks_without_end, draining, each_over_both, last_error, poll_errors, raw,
    times_logged,
};
use crate::support::prelude::*;

#[derive(Clone)]
struct Row {
    fault: Option<Fault>,
    kind: &'static str,
    error: &'static str,
}

impl Row {
    /// Whether a call ends by its time-out, or takes seconds where this build does not ship.
    fn is_slow(&self) -> bool {
        ["timeout", "too_long"].contains(&self.kind)
    }
}

fn row(fault: Fault, kind: &'static str, error: &'static str) -> Row {
    Row { fault: Some(fault), kind, error }
}

/// A response with nothing that says where it ends, so that it may have been cut off: "no connection",
/// in chunks and as it is.
fn not_whole_by(transfer_encoding: &str, version: &str) -> Row {
    let head = format!("HTTP/{version} 200 OK\r\ntransfer-encoding: {transfer_encoding}");
    if transfer_encoding == "chunked" {
        let length = NONE_CONNECTED.len();
        let chunks = format!("{length:x}\r\n{NONE_CONNECTED}\r\n0\r\n\r\n");
        return row(raw(&head, &chunks), "protocol", "it is chunked, which HTTP/1.0 has not");
    }
    row(raw(&head, NONE_CONNECTED), "protocol", "its transfer encoding is not chunked alone")
}

/// Faults that are faults on every route; those first that take long.
fn faults() -> Vec<(String, Row)> {
    let late = "no whole response within ";
    let cut = "closed before the response was whole";
    let not_whole = "not a complete HTTP response";
    let length = "it has no length";
    let slow = Fault::Slow { every: Duration::from_millis(50) };
    let ok = "HTTP/1.1 200 OK";
    named([
        ("a full backlog", Row { fault: None, kind: "timeout", error: late }),
        ("silence", row(Fault::Silent, "timeout", late)),
        ("a response too late", row(Fault::Late(Duration::from_secs(15)), "timeout", late)),
        ("a byte now and then", row(slow, "timeout", late)),
        ("status 500", row(Fault::Status(500), "status", "responded with status 500")),
        ("status 404", row(Fault::Status(404), "status", "responded with status 404")),
        ("status 204", row(Fault::Status(204), "status", "responded with status 204")),
        ("a redirect", row(Fault::Redirect, "status", "responded with status 302")),
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
        ("identity", not_whole_by("identity", "1.1")),
        ("gzip as the transfer's encoding", not_whole_by("gzip", "1.1")),
        ("an empty Transfer-Encoding", not_whole_by("", "1.1")),
        ("chunks in HTTP/1.0", not_whole_by("chunked", "1.0")),
        ("HTTP/0.9", row(Fault::Raw(NONE_CONNECTED.into()), "protocol", not_whole)),
    ])
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
    let body = |body: &str| row(Fault::Body(body.to_owned()), "content", "not a state of Envoy");
    named([
        ("nothing at all", body("")),
        ("another word", body("HEALTHY\n")),
        ("a state and more", body("DRAINING, more or less\n")),
        ("a page of HTML", row(html(), "content", "not a state of Envoy")),
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
    wait_value("the first error", || poll_errors(&sidecar, row.kind), |n| *n > 0);
    // From here on, any stats that are still read show no connection.
    admin.set_open(0);
    // Each that is slow takes twice as long as the one before.
    let often = if row.is_slow() { 2 } else { 6 };
    wait_value("errors", || poll_errors(&sidecar, row.kind), |n| *n >= often);

    assert!(hook.running(), "{name} ended the drain: {:?}", hook.try_wait());
    let status = sidecar.status();
    let in_progress = status.phase() == WAITING_FOR_CONNECTIONS && status.outcome().is_none();
    assert!(in_progress, "{name}: {status:?}");
    let polls = sidecar.metric("polls_total");
    assert!(polls >= polled + often, "{name}: {polls} polls, {polled} before {often} errors");
    let error = last_error(&sidecar);
    assert!(error.contains(&admin.admin_address()) && error.contains(row.error), "{name}: {error}");
    assert!(error.len() < 500, "{name}: {} bytes of error", error.len());
    // It is a new one behind a time-out, which so much may also be.
    let between = row.is_slow() && row.kind != "timeout";
    let between = if between { poll_errors(&sidecar, "timeout") } else { 0 };
    let times = times_logged(&sidecar, &error) as u64;
    assert!((1..=1 + between).contains(&times), "{name}: {times} times, {}", sidecar.report());
    if row.fault.is_some() {
        let met = (admin.count(route) - requests) as u64;
        assert!(met >= often, "{name}: {met} requests");
        for kind in ["refused", "timeout", "status", "protocol", "too_long", "content", "other"] {
            let errors = poll_errors(&sidecar, kind);
            // So much may also take longer than a call has.
            let expected = kind == row.kind || kind == "timeout" && row.is_slow();
            assert!(expected || errors == 0, "{name}: {errors} of {kind}, {error}");
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
    wait_value("an error", || poll_errors(&sidecar, "protocol"), |n| *n > 0);
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
            admin.wait_for(Route::Fail, if row.is_slow() { 2 } else { 3 });
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
        ("status 500", row(Fault::Status(500), "", "responded with status 500")),
        ("silence", row(Fault::Silent, "", "no whole response within 2s")),
        ("another word", row(Fault::Body("HEALTHY\n".to_owned()), "", "not a state of Envoy")),
        ("an end at once", row(Fault::Close, "", "")),
    ]);
    let rows = faults.into_iter().flat_map(|(name, row)| {
        [("--check-delay=5s", CHECK_DELAY), ("--drain-delay=5s", DRAIN_DELAY)]
            .map(|delay| (format!("{name}, {}", delay.0), (delay, row.clone())))
    });
    each_over_both(rows.collect(), |name, admin, ((delay, phase), row)| {
        admin.fault(Route::Ready, row.fault.clone().expect("a fault"));
        let sidecar = Sidecar::builder().beside(&admin).arg(delay).start();
        let mut hook = sidecar.hook(&[]);
        let status = wait_status(&sidecar, |status| {
            let failed = status.error_contains(row.error) && status.error_contains("GET /ready");
            status.phase() == phase && failed
        });
        hook.assert_running();
        let error = status.last_error().expect("an error").to_owned();
        assert_eq!(times_logged(&sidecar, &error), 1, "{name}: {}", sidecar.report());
        let exit = hook.wait();
        assert_eq!(exit.code, Some(0), "{name}: {exit:?}");
        assert_took(name, exit.took, 5.0..8.0);
        assert_eq!((admin.count(Route::Fail), poll_errors(&sidecar, "timeout")), (1, 0), "{name}");
    });
}
