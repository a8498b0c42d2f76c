//! Stats that Envoy does not return every day, but may.

use super::{NONE_CONNECTED, each_over_both};
use crate::support::prelude::*;

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
            NotCounted::Nothing => status.stats_hidden().is_none(),
            NotCounted::Some(part) => status.stats_hidden().is_some_and(|text| text.contains(part)),
            NotCounted::Unchecked => true,
        };
        if open > 0 {
            wait_open_connections(&sidecar, open);
            wait_status(&sidecar, |status| status.last_error().is_none() && hides(status));
            let polls = sidecar.metric("polls_total") + 3;
            wait_value("more polls", || sidecar.metric("polls_total"), |n| *n >= polls);
            hook.assert_running();
            admin.clear(Route::Stats);
        } else {
            wait_status(&sidecar, |status| status.phase() == ENDED && hides(status));
        }
        assert_exits(&mut hook, 0, NONE_OPEN);
    });
}
