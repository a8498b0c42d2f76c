//! What the sidecar shows of a drain of a real Envoy: status, metrics and log, also where Envoy's
//! stats hide something.

use std::time::Duration;

use crate::support::prelude::*;

fn traffic() -> Builder {
    Envoy::builder().http("http").tcp("tcp")
}

#[test]
fn times_that_do_not_add_up_are_a_warning_at_the_start() {
    let envoy = traffic().start();
    let start = |timeout: &str| {
        let args = ["--check-delay=10s", "--min-drain-duration=20s", timeout];
        Sidecar::builder().beside(&envoy).args(args).start()
    };
    let (short, enough) = (start("--drain-timeout=20s"), start("--drain-timeout=21s"));
    short.wait_log(logged(TIMEOUT_BEFORE_FIRST_POLL).with("level", "warn"));
    // The warning would come before this.
    enough.wait_log(ENVOY_RESPONDS);
    enough.assert_not_logged(TIMEOUT_BEFORE_FIRST_POLL);
    short.assert_not_logged(DRAIN_STARTED);
}

#[test]
fn the_status_is_shown_to_people_and_programs() {
    let envoy = traffic().start();
    let sidecar = Sidecar::beside(&envoy);
    let shows = |args: &[&str], parts: &[&str]| {
        let exit = sidecar.run(&[&["status"], args].concat()).wait();
        assert_eq!(exit.code, Some(0), "{exit:?}");
        for part in parts {
            assert!(exit.output.contains(part), "no {part:?} in {exit:?}");
        }
        exit.output
    };
    let shows_json = || Status::parse(&shows(&["--json"], &[]));
    let phase = format!("\nphase       {IDLE} (no drain), since ");
    shows(&[], &[&phase, "\nwaiting     no hook"]);
    let client = connect(&envoy);
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    let phase = format!("\nphase       {WAITING_FOR_CONNECTIONS}, since ");
    shows(&[], &[&phase, "\nopen        1, threshold 0 ("]);
    let json = shows_json();
    assert_eq!((json.phase(), json.open_connections()), (WAITING_FOR_CONNECTIONS, Some(1)));
    drop(client);
    assert_exits(&mut hook, 0, "drained");
    shows(&[], &["\nphase       ended, since ", "\nlast drain  drain 1: ", NONE_OPEN]);
    let json = shows_json();
    assert_eq!((json.phase(), json.drain_of_outcome()), (ENDED, Some(1)));
}

#[test]
fn a_status_that_is_watched_is_shown_again_when_it_changes_and_only_then() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    sidecar.wait_log(ENVOY_RESPONDS);
    let proxy = AdminProxy::unix(&Address::Unix(sidecar.control_socket().to_owned()));
    let control = format!("--control-socket={}", proxy.admin_address());
    let watch = run(&["status", "--watch", &control]);
    let pages = || watch.lines().iter().filter(|line| line.starts_with("phase ")).count();
    wait_value("three requests for the status", || proxy.requests().len(), |n| *n >= 3);
    assert_eq!(pages(), 1, "pages of a status that does not change; {}", watch.report());
    let mut hook = start_drain(&sidecar, &admin);
    watch.wait_line(&format!("phase       {WAITING_FOR_CONNECTIONS}, since "));
    finish_drain(&admin, &mut hook);
    watch.wait_line(&format!("phase       {ENDED}, since "));
    let (shown, requested) = (pages(), proxy.requests().len());
    wait_value("two more", || proxy.requests().len(), |n| *n >= requested + 2);
    assert_eq!(pages(), shown, "pages of a drain that has ended; {}", watch.report());
}

#[test]
fn the_status_without_a_sidecar_is_one_sentence() {
    for args in [&["status"][..], &["status", "--json"], &["status", "--watch"]] {
        let path = "/nonexistent/control.sock";
        let exit = run(&[args, &["--control-socket", path]].concat()).wait();
        assert_eq!(exit.code, Some(3), "{exit:?}");
        let sentence = format!("no sidecar could be reached: {path}: no such socket");
        assert_eq!(exit.output, sentence);
    }
}

#[test]
fn a_page_that_is_no_status_is_not_shown() {
    // It has no such page.
    let other = FakeAdmin::unix();
    for args in [&["status"][..], &["status", "--json"], &["status", "--watch"]] {
        let control = format!("--control-socket={}", other.admin_address());
        let exit = run(&[args, &[control.as_str()]].concat()).wait();
        let sentence = "no sidecar could be reached: it responded to /status with 404";
        assert_eq!((exit.code, exit.output.as_str()), (Some(3), sentence), "{args:?}");
    }
}

#[test]
fn the_metrics_show_the_drain() {
    let envoy = traffic().start();
    let sidecar = Sidecar::beside(&envoy);
    let expect = |values: &[(&str, u64)]| {
        let metrics = sidecar.metrics();
        for (series, value) in values {
            assert_eq!(metric::<u64>(&metrics, series), *value, "{series} in {metrics}");
        }
        metrics
    };
    let [idle, waiting, ended] =
        [IDLE, WAITING_FOR_CONNECTIONS, ENDED].map(|phase| format!("phase{{phase=\"{phase}\"}}"));
    expect(&[(&idle, 1), ("drains_total{outcome=\"drained\"}", 0)]);
    let client = connect(&envoy);
    let mut hook = sidecar.hook(&["--min-open-connections=0"]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    expect(&[(&waiting, 1), (&idle, 0), ("open_connections", 1)]);
    drop(client);
    assert_exits(&mut hook, 0, "drained");
    let metrics = expect(&[
        (&waiting, 0),
        (&ended, 1),
        ("open_connections", 0),
        ("threshold_connections", 0),
        ("drains_total{outcome=\"drained\"}", 1),
        ("drains_total{outcome=\"timed_out\"}", 0),
        ("drains_total{outcome=\"envoy_gone\"}", 0),
        ("poll_errors_total{kind=\"timeout\"}", 0),
        ("envoy_hooks", 0),
    ]);
    assert!(metric::<u64>(&metrics, "polls_total") >= 2, "{metrics}");
}

#[test]
fn the_log_is_json_where_that_is_set() {
    let envoy = traffic().start();
    let sidecar = Sidecar::builder().beside(&envoy).arg("--log-format=json").start();
    let client = connect(&envoy);
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    drop(client);
    assert_exits(&mut hook, 0, "drained");
    let open = logged(OPEN_CONNECTIONS).with("drain", 1).with("open_connections", 1);
    let expected = [logged(STARTED), logged(DRAIN_STARTED), open, outcome("drained")];
    assert_logged(&sidecar, &expected);
    for line in sidecar.lines() {
        assert!(line.starts_with("{\"time\":\"20"), "{line}");
        assert!(line.contains(",\"level\":\"info\",\"msg\":\""), "{line}");
        assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok(), "{line}");
    }
}

fn only_shows(prefixes: &[&str]) -> Envoy {
    let patterns = prefixes.iter().map(|prefix| format!("{{ prefix: {prefix} }}"));
    let list = patterns.collect::<Vec<_>>().join(", ");
    let config = format!("stats_matcher: {{ inclusion_list: {{ patterns: [{list}] }} }}");
    traffic().stats_config(&config).start()
}

#[test]
fn hidden_listener_gauges_are_logged_and_http_is_counted() {
    let envoy = only_shows(&["http.", "server."]);
    let sidecar = Sidecar::beside(&envoy);
    let hidden = || logged(LISTENERS_HIDDEN).with("level", "warn");
    assert_logged(&sidecar, &[logged(ENVOY_RESPONDS), hidden()]);
    assert_eq!(sidecar.times_logged(hidden()), 1);
    let (client, _tcp) = (KeptAlive::open(envoy.port("http")), connect(&envoy));
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    wait_status(&sidecar, |status| status.stats_hidden() == Some(LISTENERS_HIDDEN));
    drop(client);
    assert_exits(&mut hook, 0, "drained");
    let outcome = outcome("drained").with("not_counted", "connections that are not HTTP");
    assert_logged(&sidecar, &[logged(DRAIN_STARTED), hidden(), outcome]);
    assert_eq!(sidecar.times_logged(hidden()), 2, "once at the start and once in the drain");
}

#[test]
fn an_envoy_whose_stats_hide_everything_never_counts_as_drained() {
    let envoy = only_shows(&["server."]);
    let sidecar = Sidecar::beside(&envoy);
    sidecar.wait_log(logged(ENVOY_NOT_COUNTABLE).with("level", "warn"));
    let mut hook = sidecar.hook(&["--drain-timeout=2s"]);
    let error = "neither listener.admin nor http.admin gauges are in the response";
    wait_status(&sidecar, |status| {
        let uncounted = status.open_connections().is_none();
        status.phase() == WAITING_FOR_CONNECTIONS && uncounted && status.error_contains(error)
    });
    hook.assert_running();
    let sentence = "gave up at the drain timeout, before the open connections could be counted";
    assert_exits(&mut hook, 1, sentence);
    let took = hook.wait().took;
    assert!(took >= Duration::from_secs(2), "{took:?}");
    let failed = Expected::default().containing("error", error);
    assert_logged(&sidecar, &[failed, outcome("timed_out")]);
    assert!(sidecar.metric("poll_errors_total{kind=\"content\"}") > 1);
}

#[test]
fn the_status_of_a_drain_names_the_listeners_that_are_hidden() {
    let envoy = Envoy::builder()
        .tcp("tcp")
        .tcp("secret")
        .hidden()
        .bootstrap("stats_flush_interval: 0.5s")
        .start();
    let sidecar = Sidecar::beside(&envoy);
    let client = Connection::open(envoy.port("secret"));
    assert!(client.echoes());
    let mut hook = sidecar.hook(&[]);
    assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
    // Both have a stat_prefix, so that it may be either.
    let text = format!("tcp, secret: {LISTENERS_PERHAPS_WITHOUT_GAUGES}");
    let show = |args: &[&str]| {
        let exit = sidecar.run(&[&["status"], args].concat()).wait();
        assert_eq!(exit.code, Some(0), "{exit:?}");
        exit.output
    };
    let json = Status::parse(&show(&["--json"]));
    assert_eq!(json.stats_hidden(), Some(text.as_str()));
    let page = show(&[]);
    // It is broken between words.
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(page.contains(&format!(" not seen {text}")), "{page}");
    drop(client);
    assert_exits(&mut hook, 0, NONE_OPEN);
}
