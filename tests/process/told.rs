//! What is told of a drain of a real Envoy: status, metrics, the log, and what the stats hide.

use std::time::Duration;

use crate::support::clients::{KeptAlive, Plain};
use crate::support::envoy::{Builder, Envoy};
use crate::support::scene::{assert_ends, assert_held, assert_told, beside, metric, wait_status};
use crate::support::sidecar::{Sidecar, run};
use crate::support::{PATIENCE, shared};

fn traffic() -> Builder {
    Envoy::builder().http("http").tcp("tcp")
}

fn tcp(envoy: &Envoy) -> Plain {
    let client = Plain::open(envoy.port("tcp"));
    assert!(client.echoes());
    client
}

#[test]
fn the_status_is_shown_to_people_and_programs() {
    let _turn = shared();
    let envoy = traffic().start();
    let sidecar = beside(&envoy, &[]);
    let control = format!("--control-socket={}", sidecar.control_socket().display());
    let shows = |args: &[&str], parts: &[&str]| {
        let mut status = run(&[&["status", &*control], args].concat());
        let exit = status.wait(PATIENCE);
        assert_eq!(exit.code, Some(0), "{exit:?}");
        for part in parts {
            assert!(exit.output.contains(part), "no {part:?} in {exit:?}");
        }
        exit.output
    };
    shows(&[], &["phase:       serving (no drain)\n", "waiting:     0\n"]);
    let client = tcp(&envoy);
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    shows(&[], &["phase:       draining (drain 1, for ", "connections: 1 open, 0 may be\n"]);
    let json = shows(&["--json"], &["\"phase\":\"draining\"", "\"open_connections\":1,"]);
    assert!(json_end(json.trim_end()) == Some(""), "no JSON: {json}");
    drop(client);
    assert_ends(&mut hook, 0, "drained");
    shows(&[], &["phase:       ended (drain 1)\n", "last drain:  drain 1, ", "drained: no conn"]);
    let json = shows(&["--json"], &["\"phase\":\"ended\"", "\"outcome\":{\"drain\":1,"]);
    assert!(json_end(json.trim_end()) == Some(""), "no JSON: {json}");
}

#[test]
fn the_status_without_a_sidecar_is_one_sentence() {
    let _turn = shared();
    for args in [&["status"][..], &["status", "--json"]] {
        let path = "/nonexistent/control.sock";
        let exit = run(&[args, &["--control-socket", path]].concat()).wait(PATIENCE);
        assert_eq!(exit.code, Some(3), "{exit:?}");
        let sentence = format!("no sidecar could be reached: {path}: no such socket");
        assert_eq!(exit.output, sentence);
    }
}

#[test]
fn metrics_tell_of_the_drain() {
    let _turn = shared();
    let envoy = traffic().start();
    let sidecar = beside(&envoy, &[]);
    let expect = |values: &[(&str, u64)]| {
        let (status, metrics) = sidecar.request("GET", "/metrics");
        assert_eq!(status, 200);
        for (series, value) in values {
            assert_eq!(metric(&metrics, series), *value, "{series} in {metrics}");
        }
        metrics
    };
    expect(&[("phase{phase=\"serving\"}", 1), ("drains_total{outcome=\"drained\"}", 0)]);
    let client = tcp(&envoy);
    let mut hook = sidecar.hook(&["--min-open-connections=0"]);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    expect(&[
        ("phase{phase=\"draining\"}", 1),
        ("phase{phase=\"serving\"}", 0),
        ("open_connections", 1),
    ]);
    drop(client);
    assert_ends(&mut hook, 0, "drained");
    let metrics = expect(&[
        ("phase{phase=\"draining\"}", 0),
        ("phase{phase=\"ended\"}", 1),
        ("open_connections", 0),
        ("threshold_connections", 0),
        ("drains_total{outcome=\"drained\"}", 1),
        ("drains_total{outcome=\"timed_out\"}", 0),
        ("drains_total{outcome=\"envoy_gone\"}", 0),
        ("poll_errors_total{kind=\"timeout\"}", 0),
        ("waiters", 0),
    ]);
    assert!(metric(&metrics, "polls_total") >= 2, "{metrics}");
}

/// What follows a JSON value, or `None` if there is no valid one.
fn json_end(text: &str) -> Option<&str> {
    let list = |close: char, item: &dyn Fn(&str) -> Option<&str>| {
        let mut rest = &text[1..];
        if let Some(rest) = rest.strip_prefix(close) {
            return Some(rest);
        }
        loop {
            rest = item(rest)?;
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => return rest.strip_prefix(close),
            }
        }
    };
    match text.as_bytes().first()? {
        b'{' => list('}', &|rest| {
            let key = rest.starts_with('"').then_some(rest)?;
            json_end(json_end(key)?.strip_prefix(':')?)
        }),
        b'[' => list(']', &json_end),
        b'"' => {
            let mut escaped = false;
            let end = text[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            })?;
            let (inner, rest) = text[1..].split_at(end);
            (!inner.contains(char::is_control)).then(|| &rest[1..])
        }
        _ => {
            let end = text.find([',', '}', ']']).unwrap_or(text.len());
            let (word, rest) = text.split_at(end);
            let known = ["null", "true", "false"].contains(&word);
            (known || word.parse::<f64>().is_ok()).then_some(rest)
        }
    }
}

#[test]
fn the_log_is_json_if_it_is_to_be() {
    let _turn = shared();
    let envoy = traffic().start();
    let sidecar = beside(&envoy, &["--log-format=json", "--check-interval=50ms"]);
    let client = tcp(&envoy);
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    drop(client);
    assert_ends(&mut hook, 0, "drained");
    let open = "\"msg\":\"open connections\",\"drain\":1,\"open\":1,";
    assert_told(&sidecar, &["\"msg\":\"started\"", "drain requested", open, "\"msg\":\"drained: "]);
    for line in sidecar.log() {
        assert!(line.starts_with("{\"time\":\"20"), "{line}");
        assert!(line.contains(",\"level\":\"info\",\"msg\":\""), "{line}");
        assert_eq!(json_end(&line), Some(""), "{line}");
    }
    for bad in ["{\"a\":}", "{\"a\" 1}", "{\"a\":1", "{a:1}", "{\"a\":\"}", "{\"a\":b}", "[1,]"] {
        assert_eq!(json_end(bad), None, "{bad}");
    }
}

fn only_shows(prefixes: &[&str]) -> Envoy {
    let patterns = prefixes.iter().map(|prefix| format!("{{ prefix: {prefix} }}"));
    let list = patterns.collect::<Vec<_>>().join(", ");
    let config = format!("stats_matcher: {{ inclusion_list: {{ patterns: [{list}] }} }}");
    traffic().stats_config(&config).start()
}

#[test]
fn what_the_stats_do_not_show_of_tcp_is_said_and_http_is_counted() {
    let _turn = shared();
    let envoy = only_shows(&["http.", "server."]);
    let sidecar = beside(&envoy, &[]);
    let blind = "level=warn msg=\"Envoy's stats_config hides the listeners' gauges: connections \
                 that are not HTTP cannot be seen";
    let times = |sidecar: &Sidecar| sidecar.log().iter().filter(|l| l.contains(blind)).count();
    assert_told(&sidecar, &["msg=\"Envoy answers\"", blind]);
    assert_eq!(times(&sidecar), 1);
    let (client, _tcp) = (KeptAlive::open(envoy.port("http")), tcp(&envoy));
    let mut hook = sidecar.hook(&[]);
    assert_held(&sidecar, &mut hook, &envoy, 1);
    wait_status(&sidecar, &["\"not_counted\":\"Envoy's stats_config hides the listeners'"]);
    drop(client);
    assert_ends(&mut hook, 0, "drained");
    let outcome = "not-counted=\"connections that are not HTTP\"";
    assert_told(&sidecar, &["msg=\"drain requested\"", blind, outcome]);
    assert_eq!(times(&sidecar), 2, "once at the start and once in the drain");
}

#[test]
fn stats_that_show_nothing_are_never_taken_for_a_drained_envoy() {
    let _turn = shared();
    let envoy = only_shows(&["server."]);
    let sidecar = beside(&envoy, &[]);
    sidecar.wait_log("level=warn msg=\"Envoy's open connections cannot be counted", PATIENCE);
    let mut hook = sidecar.hook(&["--drain-timeout=2s"]);
    let error = "neither listener.admin nor http.admin gauges are in the answer";
    wait_status(&sidecar, &["\"phase\":\"draining\"", error, "\"open_connections\":null,"]);
    assert!(hook.running());
    let sentence = "gave up at the drain timeout, before the open connections could be counted";
    assert_ends(&mut hook, 1, sentence);
    let took = hook.wait(PATIENCE).took;
    assert!(took >= Duration::from_secs(2), "{took:?}");
    assert_told(&sidecar, &[error, "outcome=timed_out"]);
    let (_, metrics) = sidecar.request("GET", "/metrics");
    assert!(metric(&metrics, "poll_errors_total{kind=\"content\"}") > 1, "{metrics}");
}
