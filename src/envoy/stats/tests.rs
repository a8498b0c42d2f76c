use std::fs;
use std::path::Path;

use super::*;

const SENTINELS: &str = "server.live: 0\n\
    listener.admin.downstream_cx_active: 1\n\
    http.admin.downstream_cx_active: 1\n";

fn count_with(body: &[u8], excluded: &[&str]) -> Result<Observation, StatsError> {
    count_without(body, excluded, &[])
}

fn count_without(
    body: &[u8],
    excluded: &[&str],
    ignored: &[&str],
) -> Result<Observation, StatsError> {
    let excluded: Vec<String> = excluded.iter().map(|name| (*name).to_owned()).collect();
    let mut parser = StatsParser::new(Exclusions { names: &excluded, ignored_suffixes: ignored });
    assert!(parser.push(body));
    parser.finish()
}

/// The open connections in these lines, with the sentinels before them.
fn open(lines: &str) -> u64 {
    open_without(lines, &[])
}

fn open_without(lines: &str, excluded: &[&str]) -> u64 {
    let observation = count_with(format!("{SENTINELS}{lines}").as_bytes(), excluded).unwrap();
    assert_eq!(observation.coverage, StatsCoverage::Everything);
    observation.open
}

/// What a folder of `tests/stats` expects, as its file `expected` writes it.
fn expected(text: &str) -> (Vec<&str>, Vec<&str>) {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let (excluded, facts): (Vec<&str>, Vec<&str>) =
        lines.partition(|line| line.starts_with("exclude "));
    (excluded.into_iter().map(|line| &line["exclude ".len()..]).collect(), facts)
}

#[test]
fn counts_what_real_envoys_responded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stats");
    let (mut seen, mut wrong) = (0, Vec::new());
    for entry in fs::read_dir(folder).unwrap() {
        let capture = entry.unwrap().path();
        if !capture.is_dir() {
            continue;
        }
        let body = fs::read(capture.join("stats")).unwrap();
        let text = fs::read_to_string(capture.join("expected")).unwrap();
        let (excluded, mut facts) = expected(&text);
        let mut found = match count_with(&body, &excluded) {
            Ok(Observation { open, subtracted, live, coverage, total, .. }) => [
                Some(format!("open {open}")),
                subtracted.then(|| "subtracted true".to_owned()),
                total.map(|total| format!("total {} {}", total.connections, total.uptime)),
                Some(format!("live {}", live.map_or("absent".to_owned(), |live| live.to_string()))),
                Some(format!(
                    "visible {}",
                    match coverage {
                        StatsCoverage::Everything => "both",
                        StatsCoverage::HttpOnly => "http",
                        StatsCoverage::ListenersOnly => "listeners",
                    }
                )),
            ]
            .into_iter()
            .flatten()
            .collect(),
            Err(StatsError::NothingVisible) => vec!["open -".into(), "visible nothing".into()],
            Err(error) => panic!("{}: {error}", capture.display()),
        };
        if found[0] == "open -" {
            facts.retain(|fact| !fact.starts_with("live "));
        }
        found.sort();
        facts.sort();
        if found != facts {
            wrong.push(format!("{}: {found:?}, not {facts:?}", capture.display()));
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen >= 20, "only {seen} captures were found");
}

#[test]
fn a_capture_counts_the_same_from_its_end() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stats");
    for entry in fs::read_dir(folder).unwrap() {
        let capture = entry.unwrap().path();
        let Ok(body) = fs::read(capture.join("stats")) else { continue };
        let text = fs::read_to_string(capture.join("expected")).unwrap();
        let (excluded, _) = expected(&text);
        let reversed: Vec<_> = body.split(|byte| *byte == b'\n').rev().collect();
        let reversed = count_with(&reversed.join(&b'\n'), &excluded);
        assert_eq!(reversed, count_with(&body, &excluded), "{}", capture.display());
    }
}

#[test]
fn adds_listeners_and_takes_off_excluded_prefixes() {
    assert_eq!(open(""), 0);
    assert_eq!(
        open(
            "listener.0.0.0.0_8080.downstream_cx_active: 3\n\
             listener.0.0.0.0_8443.downstream_cx_active: 4\n\
             listener.0.0.0.0_8443.downstream_pre_cx_active: 2\n\
             http.ingress_http.downstream_cx_active: 3\n"
        ),
        9
    );
    for prefix in
        ["envoy-admin", "stats", "health", "stats-health", "eg-stats-http", "eg-ready-http"]
    {
        let scrape = format!(
            "listener.0.0.0.0_8002.downstream_cx_active: 5\nhttp.{prefix}.downstream_cx_active: 4\n"
        );
        assert_eq!(open(&scrape), 1, "{prefix}");
    }
    assert_eq!(open("http.stats.downstream_cx_active: 4\n"), 0, "never below zero");
}

#[test]
fn envoy_gateways_own_listeners_are_known_by_the_end_of_their_addresses() {
    // A scrape, a probe that speaks and one that does not, and traffic on ports like theirs.
    let lines = "listener.0.0.0.0_19001.downstream_cx_active: 1\n\
        listener.0.0.0.0_19001.worker_0.downstream_cx_active: 1\n\
        listener.[__]_19003.downstream_cx_active: 2\n\
        listener.[__]_19003.downstream_pre_cx_active: 1\n\
        listener.0.0.0.0_10080.downstream_cx_active: 3\n\
        listener.0.0.0.0_9001.downstream_cx_active: 1\n\
        listener.x_19001_y.downstream_cx_active: 1\n\
        listener.db_19001.downstream_cx_active: 1\n\
        http.eg-stats-http.downstream_cx_active: 1\n\
        http.eg-ready-http.downstream_cx_active: 1\n\
        http.http-10080.downstream_cx_active: 3\n";
    let body = format!("{SENTINELS}{lines}");
    let own = crate::cli::options::Flavor::EnvoyGateway.ignored_listener_suffixes();
    let open = |own| count_without(body.as_bytes(), &[], own).unwrap().open;
    // A name that is given to a listener has no port.
    assert_eq!(open(own), 6);
    // Elsewhere what speaks HTTP is known by its prefix.
    assert_eq!(open(&[]), 8);
    let http_alone =
        format!("http.admin.downstream_cx_active: 1\n{}", &lines[lines.find("http.").unwrap()..]);
    assert_eq!(count_without(http_alone.as_bytes(), &[], own).unwrap().open, 3);
}

#[test]
fn the_admin_interface_is_not_traffic_but_a_listener_of_its_name_is() {
    let admin = "listener.admin.downstream_cx_active: 3\nlistener.admin.downstream_pre_cx_active: 1\n\
        listener.admin.main_thread.downstream_cx_active: 1\nhttp.admin.downstream_cx_active: 1\n\
        listener.a.downstream_cx_active: 2\n";
    // Envoy's own has no silent clients: that one is of a listener of its name.
    assert_eq!(open(admin), 3);
    let of_its_name = "listener.admin.worker_0.downstream_cx_active: 1\n\
        listener.admin.worker_1.downstream_cx_active: 1\n";
    assert_eq!(open(&format!("{admin}{of_its_name}")), 5);
}

#[test]
fn a_client_that_speaks_while_the_gauges_are_read_is_counted() {
    let caught = "listener.l.downstream_cx_active: 0\nlistener.l.downstream_pre_cx_active: 0\n\
        listener.l.worker_0.downstream_cx_active: 0\nlistener.l.worker_1.downstream_cx_active: 1\n";
    assert_eq!(open(caught), 1);
}

#[test]
fn a_workers_copy_of_a_gauge_is_not_counted_twice() {
    let gauges = "listener.l.downstream_cx_active: 5\nlistener.l.worker_0.downstream_cx_active: 2\n\
        listener.l.worker_63.downstream_cx_active: 3\nlistener.l.downstream_pre_cx_active: 7\n";
    assert_eq!(open(gauges), 12);
    assert_eq!(open_without(gauges, &["l"]), 0);
    assert_eq!(
        open(
            "listener.l.main_thread.downstream_cx_active: 1\nlistener.l.downstream_cx_active: 1\n"
        ),
        1
    );
}

#[test]
fn names_that_look_like_others_are_counted() {
    for (name, counted) in [
        ("envoy_internal_x", false),
        ("admin.main_thread", false),
        // No total, so these are whole names.
        ("l.worker_0", true),
        ("l.main_thread", true),
        ("worker_0", true),
        ("main_thread", true),
        ("l.worker_", true),
        ("l.worker_a", true),
        ("l.worker_0x", true),
        ("my.worker_thing", true),
        ("worker", true),
        ("admin_portal", true),
        ("my.admin", true),
        ("x_envoy_internal_", true),
    ] {
        for gauge in ["downstream_cx_active", "downstream_pre_cx_active"] {
            let line = format!("listener.{name}.{gauge}: 1\n");
            assert_eq!(open(&line), u64::from(counted), "{line}");
            // With a total of another name, which is not theirs.
            let with_another = format!("{line}listener.l.worker.downstream_cx_active: 1\n");
            assert_eq!(open(&with_another), u64::from(counted) + 1, "{line}");
            assert_eq!(open_without(&line, &[name]), 0, "{line}");
        }
    }
}

#[test]
fn a_name_that_only_resembles_a_workers_copy_counts_as_a_listener() {
    for name in ["l.worker_", "l.worker_a", "l.worker_0x", "l.main_threads"] {
        let lines = format!(
            "listener.l.downstream_cx_active: 1\nlistener.{name}.downstream_cx_active: 1\n"
        );
        assert_eq!(open(&lines), 2, "{name}");
    }
}

#[test]
fn one_request_reads_all_that_is_counted() {
    let filter = r"^(server\.(live|hot_restart_epoch|parent_connections|total_connections|uptime)|(http|listener|udp)\..*\.downstream_((pre_)?cx|cx_http3|cx_upgrades|rq|sess)_active|http\..*\.downstream_cx_tx_bytes_buffered|overload\..*injected_resource.pressure)$";
    let escaped = filter.replace('^', "%5E").replace('\\', "%5C").replace('|', "%7C");
    assert_eq!(REQUEST, format!("/stats?type=Gauges&usedonly&filter={escaped}"));
}

#[test]
fn a_response_may_be_16_mebibytes_long() {
    assert_eq!(MAX_BODY, 16_777_216);
}

#[test]
fn an_order_that_is_not_envoys_makes_the_count_larger() {
    // That this is a listener of its own shows too late.
    let lines = "listener.a.downstream_cx_active: 3\n\
        listener.a.worker_0.downstream_cx_active: 2\n\
        listener.b.downstream_cx_active: 1\n\
        listener.a.worker_0.downstream_pre_cx_active: 4\n";
    assert_eq!(open(lines), 3 + 2 + 1 + 4);
    assert_eq!(open_without(lines, &["a"]), 2 + 1 + 4);
}

#[test]
fn excluded_names_are_exact() {
    let lines = "listener.metrics.downstream_cx_active: 1\n\
        listener.metrics2.downstream_cx_active: 2\n\
        listener.x.downstream_cx_active: 4\n\
        http.x.y.downstream_cx_active: 4\n";
    assert_eq!(open_without(lines, &["metrics"]), 6);
    assert_eq!(open_without(lines, &["metric"]), 7);
    assert_eq!(open_without(lines, &["x.y"]), 3);
    // These are no copies, since nothing else is there of which they would be.
    let lines = "listener.l.worker_0.downstream_cx_active: 2\nlistener.a.downstream_cx_active: 1\n\
        http.stats.downstream_cx_active: 2\n";
    assert_eq!(open_without(lines, &["l.worker_0"]), 1);
    // These are, and excluded with their listener.
    for listener in ["l.downstream_cx_active: 0", "l.downstream_pre_cx_active: 1"] {
        let lines = format!("listener.{listener}\nlistener.l.worker_0.downstream_cx_active: 2\n");
        assert_eq!(open_without(&lines, &["l"]), 0, "{listener}");
    }
    assert_eq!(open_without("listener.admin.worker_0.downstream_cx_active: 2\n", &["admin"]), 0);
}

#[test]
fn what_is_excluded_twice_may_be_the_same() {
    let lines = "listener.metrics.downstream_cx_active: 1\n\
        listener.metrics2.downstream_cx_active: 2\n\
        listener.x.downstream_cx_active: 4\n\
        http.x.y.downstream_cx_active: 4\n";
    assert_eq!(open_without(lines, &["metrics", "x.y"]), 6 - (4 - 1));
}

#[test]
fn an_excluded_listeners_connections_are_not_taken_off_others() {
    let lines = "listener.metrics.downstream_cx_active: 3\n\
        listener.metrics.downstream_pre_cx_active: 1\n\
        http.metrics.downstream_cx_active: 3\n\
        listener.ingress.downstream_cx_active: 2\n";
    assert_eq!(open_without(lines, &["metrics"]), 2, "one name for both");
    let lines = "listener.0.0.0.0_8002.downstream_cx_active: 3\n\
        http.stats.downstream_cx_active: 3\n\
        listener.ingress.downstream_cx_active: 2\n";
    assert_eq!(open_without(lines, &["0.0.0.0_8002"]), 2, "the listener of an excluded prefix");
}

#[test]
fn a_response_without_a_family_says_so_and_one_without_both_is_no_poll() {
    let http = "http.admin.downstream_cx_active: 1\nhttp.a.downstream_cx_active: 2\n\
        http.stats.downstream_cx_active: 4\n";
    let observation = count_with(http.as_bytes(), &[]).unwrap();
    assert_eq!((observation.open, observation.live), (2, None));
    assert_eq!(observation.coverage, StatsCoverage::HttpOnly);
    // The admin listener is hidden, another is not.
    let some = format!("{http}listener.tcp.downstream_cx_active: 9\n");
    assert_eq!(count_with(some.as_bytes(), &[]).unwrap().open, 9 - 4);

    let listeners = "listener.admin.downstream_cx_active: 1\nlistener.a.downstream_cx_active: 2\n";
    let observation = count_with(listeners.as_bytes(), &[]).unwrap();
    assert_eq!((observation.open, observation.live), (2, None));
    assert_eq!(observation.coverage, StatsCoverage::ListenersOnly);

    for nothing in ["", "OK\n", "server.live: 0\n", "http.a.downstream_cx_active: 0\n", "<html>"] {
        assert_eq!(
            count_with(nothing.as_bytes(), &[]),
            Err(StatsError::NothingVisible),
            "{nothing}"
        );
    }
}

#[test]
fn a_gauge_without_a_number_makes_the_response_no_poll() {
    for value in
        ["", " ", "-1", "+1", "1.5", "1e3", "0x1", "one", "18446744073709551616", "1 2", "\u{661}"]
    {
        for gauge in
            ["listener.a.downstream_cx_active", "http.a.downstream_cx_active", "server.live"]
        {
            let body = format!("{SENTINELS}{gauge}: {value}\n{SENTINELS}");
            let error = count_with(body.as_bytes(), &[]);
            assert!(matches!(error, Err(StatsError::BadValue(_))), "{gauge}: {value}");
        }
    }
    let unrelated =
        "cluster.a.upstream_cx_active: many\nlistener.a.downstream_cx_total: -\n: \n:\n";
    assert_eq!(open(unrelated), 0);
}

#[test]
fn what_is_there_twice_makes_the_count_larger_and_never_smaller() {
    let lines = "listener.a.downstream_cx_active: 2\nlistener.b.downstream_pre_cx_active: 3\n";
    assert_eq!(open(&lines.repeat(2)), 10);
    let scrape = "listener.s.downstream_cx_active: 2\n";
    for ([first, second], least) in [([2, 2], 2), ([1, 2], 1), ([2, 1], 1)] {
        let http = "http.stats.downstream_cx_active";
        let lines = format!("{http}: {first}\n{scrape}{http}: {second}\n{scrape}");
        assert_eq!(open(&lines), 4 - least, "{first} and {second}");
    }
    for live in ["server.live: 1\nserver.live: 0\n", "server.live: 0\nserver.live: 1\n"] {
        let seen = count_with(format!("{SENTINELS}{live}").as_bytes(), &[]).unwrap();
        assert_eq!(seen.live, Some(true), "{live}");
    }
}

#[test]
fn sums_stop_at_the_largest_number() {
    let huge = "listener.a.downstream_cx_active: 18446744073709551615\n\
        listener.b.downstream_cx_active: 2\n";
    assert_eq!(open(huge), u64::MAX);
}

#[test]
fn names_may_hold_anything() {
    assert_eq!(open("listener.a: b.downstream_cx_active: 2\n"), 2);
    assert_eq!(open("listener.\u{fc}\u{1f980}.downstream_cx_active: 2\r\n"), 2);
    assert_eq!(open("listener..downstream_cx_active: 3\nhttp..downstream_cx_active: 3\n"), 0);
    assert_eq!(open("http.a.b.c.downstream_cx_active: 2\n"), 2);
    let bytes = [SENTINELS.as_bytes(), b"listener.\xff\xfe.downstream_cx_active: 2\n"].concat();
    assert_eq!(count_with(&bytes, &[]).unwrap().open, 2);
}

#[test]
fn pieces_may_end_anywhere() {
    let body = format!(
        "{SENTINELS}listener.a.downstream_cx_active: 12\nlistener.b.downstream_pre_cx_active: 30"
    );
    for size in 1..body.len() {
        let mut parser = StatsParser::new(Exclusions { names: &[], ignored_suffixes: &[] });
        assert!(body.as_bytes().chunks(size).all(|piece| parser.push(piece)));
        assert_eq!(parser.finish().unwrap().open, 42, "in pieces of {size}");
    }
}

#[test]
fn live_is_read_wherever_it_stands() {
    for (line, live) in [("server.live: 1\n", true), ("server.live: 0\n", false)] {
        for body in [format!("{line}{}", &SENTINELS[15..]), format!("{}{line}", &SENTINELS[15..])] {
            assert_eq!(count_with(body.as_bytes(), &[]).unwrap().live, Some(live));
        }
    }
}

#[test]
fn an_error_says_what_to_do() {
    let error = count_with(b"", &[]).unwrap_err().to_string();
    assert!(error.contains("stats_config"), "{error}");
    let line = format!("listener.{}.downstream_cx_active: x\n", "a".repeat(1000));
    let error = count_with(line.as_bytes(), &[]).unwrap_err().to_string();
    assert!(error.len() < 300 && error.contains("without a number"), "{error}");
}

/// The observation that these lines make, with the sentinels before them.
fn observe(lines: &str, excluded: &[&str]) -> (u64, bool) {
    let seen = count_with(format!("{SENTINELS}{lines}").as_bytes(), excluded).unwrap();
    (seen.open, seen.subtracted)
}

#[test]
fn a_count_says_whether_something_was_subtracted() {
    let scrape = "listener.s.downstream_cx_active: 1\nhttp.stats.downstream_cx_active: 1\n";
    let traffic = "listener.a.downstream_cx_active: 2\nhttp.a.downstream_cx_active: 2\n";
    let idle_scrape = "listener.s.downstream_cx_active: 0\nhttp.stats.downstream_cx_active: 0\n";
    let closed_in_between = "listener.s.downstream_cx_active: 0\nhttp.stats.downstream_cx_active: 1\n\
        listener.a.downstream_cx_active: 1\n";
    for (lines, excluded, expected) in [
        (String::new(), vec![], (0, false)),
        (traffic.to_owned(), vec![], (2, false)),
        (idle_scrape.to_owned(), vec![], (0, false)),
        (format!("{traffic}{idle_scrape}"), vec![], (2, false)),
        (scrape.to_owned(), vec![], (0, true)),
        // The floor holds, whatever was subtracted.
        (format!("{traffic}{scrape}"), vec![], (2, true)),
        (closed_in_between.to_owned(), vec![], (0, true)),
        // What is on an excluded listener was not added.
        (format!("{traffic}{scrape}"), vec!["s"], (2, false)),
        (scrape.to_owned(), vec!["s"], (0, false)),
        // Nothing is there that could be hidden.
        ("http.stats.downstream_cx_active: 1\n".to_owned(), vec![], (0, false)),
    ] {
        assert_eq!(observe(&lines, &excluded), expected, "{lines}without {excluded:?}");
    }
}

#[test]
fn http_connections_are_a_floor() {
    let hidden = "http.a.downstream_cx_active: 3\n";
    let tcp = "listener.t.downstream_cx_active: 2\n";
    let scrape = "listener.s.downstream_cx_active: 1\nhttp.stats.downstream_cx_active: 1\n";
    let scrapes = "listener.s.downstream_cx_active: 4\nhttp.stats.downstream_cx_active: 4\n";
    // An excluded listener with HTTP connections under a prefix that is not.
    let excluded = "listener.x.downstream_cx_active: 3\nlistener.x.downstream_pre_cx_active: 1\n";
    let internal = "listener.envoy_internal_x.downstream_cx_active: 3\n\
        listener.envoy_internal_x.downstream_pre_cx_active: 0\n\
        listener.envoy_internal_x.worker_0.downstream_cx_active: 3\n";
    for (parts, expected) in [
        (vec![hidden], (3, false)),
        (vec![hidden, tcp], (3, false)),
        (vec![hidden, tcp, tcp], (4, false)),
        (vec![hidden, scrape], (3, false)),
        (vec![hidden, tcp, scrape], (3, false)),
        // An excluded listener's connections are not the floor's, nor are an internal one's.
        (vec![hidden, excluded], (0, true)),
        (vec![hidden, excluded, tcp], (2, true)),
        (vec![hidden, hidden, excluded], (3, true)),
        (vec![hidden, internal], (0, true)),
        (vec![hidden, hidden, internal], (3, true)),
        (vec![hidden, internal, tcp], (2, true)),
        // One excluded prefix's connection may be one of the excluded listener's.
        (vec![hidden, excluded, "http.stats.downstream_cx_active: 1\n"], (1, true)),
        // A scrape may be one of an internal listener, whose connections were not added.
        (vec![internal, scrape, tcp], (3, false)),
        (vec![internal, "http.stats.downstream_cx_active: 3\n", tcp], (2, false)),
        (vec![internal, scrapes, tcp], (5, true)),
    ] {
        assert_eq!(observe(&parts.concat(), &["x"]), expected, "{parts:?}");
    }
    // A silent client of an excluded listener has no HTTP connection that could be subtracted.
    let silent = "listener.x.downstream_cx_active: 0\nlistener.x.downstream_pre_cx_active: 3\n";
    assert_eq!(observe(&[hidden, silent].concat(), &["x"]), (3, false));
    assert_eq!(observe(&[silent, scrape, tcp].concat(), &["x"]), (2, true));
}

#[test]
fn the_old_process_of_a_hot_restart_counts_whatever_is_visible() {
    let parent = "server.parent_connections: 2\n";
    assert_eq!(observe(parent, &[]), (2, false));
    let scrape = "listener.s.downstream_cx_active: 1\nhttp.stats.downstream_cx_active: 1\n";
    assert_eq!(observe(&format!("{parent}{scrape}"), &[]), (2, true));
    assert_eq!(observe(&format!("{parent}http.a.downstream_cx_active: 3\n"), &[]), (5, false));
    for sentinel in ["listener.admin", "http.admin"] {
        let body = format!("{sentinel}.downstream_cx_active: 1\n{parent}");
        assert_eq!(count_with(body.as_bytes(), &[]).unwrap().open, 2, "{sentinel}");
    }
}

#[test]
fn nothing_is_counted_while_the_old_process_of_a_hot_restart_is_not_shown() {
    let observe = |lines: &str| count_with(format!("{SENTINELS}{lines}").as_bytes(), &[]);
    let new = "server.hot_restart_epoch: 1\nserver.live: 0\n";
    assert_eq!(observe(new), Err(StatsError::ParentUnknown));
    assert_eq!(observe(&format!("{new}server.parent_connections: 2\n")).unwrap().open, 2);
    assert_eq!(observe(&format!("{new}server.parent_connections: 0\n")).unwrap().open, 0);
    assert_eq!(observe("server.hot_restart_epoch: 0\nserver.live: 0\n").unwrap().open, 0);
}

#[test]
fn the_second_count_needs_its_time() {
    let total = |lines: &str| {
        let body = format!("{SENTINELS}{lines}");
        count_with(body.as_bytes(), &[]).unwrap().total
    };
    let both = "server.total_connections: 6\nserver.uptime: 5\n";
    assert_eq!(total(both), Some(ServerTotal { connections: 6, uptime: 5 }));
    assert_eq!(total(""), None);
    assert_eq!(total("server.total_connections: 6\n"), None);
    assert_eq!(total("server.uptime: 6\n"), None);
    assert_eq!(open(both), 0);
}

#[test]
fn a_line_without_end_is_given_up() {
    let mut parser = StatsParser::new(Exclusions { names: &[], ignored_suffixes: &[] });
    let piece = [b'a'; 4096];
    let taken = (1..1000).find(|_| !parser.push(&piece));
    assert_eq!(taken, Some(17), "64 KiB");
}

#[test]
fn connections_are_shown_by_kind_listener_and_prefix() {
    let lines = "http.admin.downstream_rq_active: 1\n\
        http.ingress_http.downstream_cx_active: 5\n\
        http.ingress_http.downstream_cx_upgrades_active: 2\n\
        http.ingress_http.downstream_rq_active: 4\n\
        http.stats.downstream_cx_active: 1\n\
        http.stats.downstream_cx_upgrades_active: 1\n\
        http.stats.downstream_rq_active: 1\n\
        listener.127.0.0.1_1.downstream_cx_active: 5\n\
        listener.127.0.0.1_1.downstream_pre_cx_active: 3\n\
        listener.127.0.0.1_2.downstream_cx_active: 6\n\
        listener.127.0.0.1_2.downstream_pre_cx_active: 0\n\
        listener.127.0.0.1_3.downstream_cx_active: 1\n\
        listener.unused.downstream_cx_active: 0\n\
        server.parent_connections: 2\n\
        udp.dns.downstream_sess_active: 9\n";
    let body = format!("{SENTINELS}{lines}");
    let observation = count_with(body.as_bytes(), &[]).unwrap();
    assert_eq!(observation.open, 5 + 3 + 6 + 1 - 1 + 2);
    let Breakdown { listeners, prefixes, kinds, requests, udp_sessions, bytes, .. } =
        observation.breakdown;
    assert_eq!(kinds.list().unwrap(), "3 http, 2 upgraded, 6 tcp, 3 silent, 2 parent");
    let open = kinds.named().into_iter().map(|(_, open)| open).sum::<u64>();
    assert_eq!(open, observation.open, "each connection is of one kind");
    assert_eq!(listeners.list().unwrap(), "127.0.0.1_1 8, 127.0.0.1_2 6, 127.0.0.1_3 1");
    assert_eq!(prefixes.list().unwrap(), "ingress_http 5");
    assert_eq!((requests, udp_sessions, bytes), (Some(4), 9, body.len() as u64));
}

#[test]
fn kinds_add_up_to_what_is_open_in_every_capture() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stats");
    let captures = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut with_connections = 0;
    for capture in captures.filter(|capture| capture.is_dir()) {
        let body = fs::read(capture.join("stats")).unwrap();
        let text = fs::read_to_string(capture.join("expected")).unwrap();
        let Ok(observation) = count_with(&body, &expected(&text).0) else { continue };
        let sum: u64 = observation.breakdown.kinds.named().into_iter().map(|(_, n)| n).sum();
        assert_eq!(sum, observation.open, "{}", capture.display());
        with_connections += u32::from(sum > 0);
    }
    assert!(with_connections > 20, "{with_connections} captures");
}

#[test]
fn what_holds_a_drain_that_waits_for_requests_is_what_is_in_use() {
    for (text, lines, excluded, (open, in_use)) in [
        (
            "idle HTTP beside TCP",
            "http.web.downstream_cx_active: 2\nhttp.web.downstream_rq_active: 0\n\
             listener.w.downstream_cx_active: 2\nlistener.t.downstream_cx_active: 1\n",
            &[][..],
            (3, 1),
        ),
        (
            "two CONNECT streams and a request on one connection, and a silent client",
            "http.web.downstream_cx_active: 1\nhttp.web.downstream_rq_active: 3\n\
             http.web.downstream_cx_upgrades_active: 2\nlistener.w.downstream_cx_active: 1\n\
             listener.w.downstream_pre_cx_active: 1\n",
            &[],
            (2, 4),
        ),
        (
            "a response that is still sent, and the old process of a hot restart",
            "http.web.downstream_cx_active: 3\nhttp.web.downstream_cx_tx_bytes_buffered: 196288\n\
             http.web.downstream_rq_active: 0\nlistener.w.downstream_cx_active: 3\n\
             server.parent_connections: 4\n",
            &[],
            (7, 5),
        ),
        (
            "requests that are not shown",
            "http.web.downstream_cx_active: 2\nlistener.w.downstream_cx_active: 2\n",
            &[],
            (2, 2),
        ),
        (
            "a response of HTTP/3 of which the stats show nothing any more",
            "http.web.downstream_cx_active: 2\nhttp.web.downstream_cx_http3_active: 1\n\
             http.web.downstream_rq_active: 0\nlistener.w.downstream_cx_active: 2\n",
            &[],
            (2, 2),
        ),
        (
            "a scrape's request",
            "http.stats.downstream_cx_active: 1\nhttp.stats.downstream_rq_active: 1\n\
             listener.s.downstream_cx_active: 1\n",
            &[],
            (0, 0),
        ),
        (
            "a request of an excluded listener",
            "http.web.downstream_cx_active: 1\nhttp.web.downstream_rq_active: 1\n\
             listener.w.downstream_cx_active: 1\n",
            &["w"],
            (0, 0),
        ),
    ] {
        let found = count_with(format!("{SENTINELS}{lines}").as_bytes(), excluded).unwrap();
        assert_eq!((found.open, found.in_use), (open, in_use), "{text}");
        let is_hidden = text.contains("not shown") || text.contains("show nothing");
        assert_eq!(found.breakdown.requests_hidden.is_some(), is_hidden, "{text}");
    }
}
