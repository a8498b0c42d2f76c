use super::*;

/// The hidden listeners of these lines of `/listeners` and names of gauges; each name has both
/// gauges, and the admin interface is visible.
fn hidden_with(
    listeners: &str,
    gauges: &[&str],
    excluded: &[&str],
) -> Result<HiddenStats, &'static str> {
    let excluded: Vec<String> = excluded.iter().map(|name| (*name).to_owned()).collect();
    let exclusions = Exclusions { names: &excluded, ignored_suffixes: &["_19001"] };
    let mut names: Vec<_> = gauges.iter().chain(&["admin"]).collect();
    names.sort();
    let lines: String = names
        .iter()
        .map(|name| {
            format!(
                "listener.{name}.downstream_cx_active: 0\nlistener.{name}.downstream_pre_cx_active: 0\n"
            )
        })
        .collect();
    hidden_in(listeners, &lines, exclusions)
}

fn hidden_in(
    listeners: &str,
    lines: &str,
    exclusions: Exclusions<'_>,
) -> Result<HiddenStats, &'static str> {
    hidden_for(&Options::default(), listeners, lines, exclusions)
}

fn hidden_for(
    options: &Options,
    listeners: &str,
    lines: &str,
    exclusions: Exclusions<'_>,
) -> Result<HiddenStats, &'static str> {
    let mut names = GaugeNames::new(exclusions, options);
    assert!(lines.as_bytes().chunks(7).all(|piece| names.push(piece)));
    names.hidden_of(listeners.as_bytes())
}

fn hidden(names: &[&str], certain: bool) -> Result<HiddenStats, &'static str> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Ok(HiddenStats { listeners: names, certain, uncounted: Vec::new(), ..HiddenStats::default() })
}

#[test]
fn listeners_are_hidden_if_nothing_can_be_their_gauge() {
    const WEB: &str = "web::127.0.0.1:8080\n";
    const TCP: &str = "tcp::127.0.0.1:9000\n";
    let none = || hidden(&[], false);
    for (listeners, gauges, expected) in [
        // Used or not, all are there.
        (format!("{WEB}{TCP}"), vec!["127.0.0.1_8080", "127.0.0.1_9000"], none()),
        (String::new(), vec![], none()),
        // An HTTP listener or a TCP one is hidden, or both.
        (format!("{WEB}{TCP}"), vec!["127.0.0.1_9000"], hidden(&["web"], true)),
        (format!("{WEB}{TCP}"), vec!["127.0.0.1_8080"], hidden(&["tcp"], true)),
        (format!("{WEB}{TCP}"), vec![], hidden(&["web", "tcp"], true)),
        // A stat_prefix of its own, or one for both.
        (format!("{WEB}{TCP}"), vec!["127.0.0.1_8080", "my.prefix"], none()),
        (format!("{WEB}{TCP}"), vec!["my.prefix", "other"], none()),
        (format!("{WEB}{TCP}"), vec!["shared"], hidden(&["web", "tcp"], false)),
        // A stat_prefix that reads like a thread's copy, or like the admin interface.
        (WEB.to_owned(), vec!["a", "a.worker_0"], none()),
        (format!("{WEB}{TCP}"), vec!["a", "a.worker_0"], none()),
        // An address is no stat_prefix of a listener elsewhere: it may be a removed listener's.
        (WEB.to_owned(), vec!["127.0.0.1_7070"], hidden(&["web"], false)),
        (WEB.to_owned(), vec!["[__1]_7070"], hidden(&["web"], false)),
        (WEB.to_owned(), vec!["127.0.0.1_8080", "127.0.0.1_7070"], none()),
        (format!("{WEB}{TCP}"), vec!["127.0.0.1_7070", "p"], hidden(&["web", "tcp"], false)),
        // Port 0: the gauge keeps it, also if two share it.
        (format!("{WEB}{TCP}"), vec!["127.0.0.1_0"], none()),
        ("x::127.0.0.2:8080\n".to_owned(), vec!["127.0.0.1_0"], hidden(&["x"], false)),
        ("v6::[::1]:40001\n".to_owned(), vec!["[__1]_0"], none()),
        ("p::/run/a\n".to_owned(), vec!["/run/0", "/run/a0"], none()),
        // Several addresses: the first names the gauge.
        ("multi::127.0.0.1:1\nmulti::127.0.0.1:2\n".to_owned(), vec!["127.0.0.1_1"], none()),
        ("multi::127.0.0.1:1\nmulti::127.0.0.1:2\n".to_owned(), vec![], hidden(&["multi"], true)),
        // Internal listeners are not counted, and their gauges stand for no other.
        ("inner::envoy://inner/\n".to_owned(), vec!["envoy_internal_inner"], none()),
        ("inner::envoy://inner/\n".to_owned(), vec![], uncounted(&[], &["inner"])),
        (
            "a::envoy://a/\nb::envoy://b/\n".to_owned(),
            vec!["envoy_internal_a"],
            uncounted(&[], &["b"]),
        ),
        (WEB.to_owned(), vec!["envoy_internal_inner"], hidden(&["web"], true)),
        ("inner::envoy://inner/\n".to_owned(), vec!["its.stat_prefix"], none()),
    ] {
        assert_eq!(hidden_with(&listeners, &gauges, &[]), expected, "{listeners}{gauges:?}");
    }
}

#[test]
fn names_and_addresses_may_hold_anything() {
    for (listener, gauge, name) in [
        ("v6::[::1]:56939", "[__1]_56939", "v6"),
        ("dual::[::]:55549", "[__]_55549", "dual"),
        ("any::0.0.0.0:80", "0.0.0.0_80", "any"),
        ("pipe::/run/pipe.sock", "/run/pipe.sock", "pipe"),
        ("pipe::/run/a::b:/c", "/run/a__b_c", "pipe::/run/a"),
        ("abstract::@facts", "@facts", "abstract"),
        ("a::b::127.0.0.1:80", "127.0.0.1_80", "a::b"),
        ("a::b::[::1]:80", "[__1]_80", "a::b"),
        ("a::[b::127.0.0.1:80", "127.0.0.1_80", "a::[b"),
        ("a:::127.0.0.1:80", "127.0.0.1_80", "a:"),
        ("::127.0.0.1:80", "127.0.0.1_80", ""),
        ("with space::127.0.0.1:80", "127.0.0.1_80", "with space"),
        (" lead::127.0.0.1:80", "127.0.0.1_80", " lead"),
        ("x: 1::127.0.0.1:80", "127.0.0.1_80", "x: 1"),
        ("a\tb::127.0.0.1:80", "127.0.0.1_80", "a\tb"),
        ("\u{fc}\u{f1}\u{ed}\u{20ac}::127.0.0.1:80", "127.0.0.1_80", "\u{fc}\u{f1}\u{ed}\u{20ac}"),
        ("new\nline::127.0.0.1:81::127.0.0.1:80", "127.0.0.1_80", "line::127.0.0.1:81"),
        ("c\rr::127.0.0.1:80", "127.0.0.1_80", "c\rr"),
    ] {
        let lines = format!("{listener}\nother::127.0.0.9:9\n");
        assert_eq!(hidden_with(&lines, &[gauge], &[]), hidden(&["other"], true), "{listener:?}");
        assert_eq!(hidden_with(&lines, &[], &[]), hidden(&[name, "other"], true), "{listener:?}");
    }
    let long = format!("{}::127.0.0.1:80\n", "n".repeat(1000));
    assert_eq!(hidden_with(&long, &["127.0.0.1_80"], &[]), hidden(&[], false));
}

fn uncounted(names: &[&str], uncounted: &[&str]) -> Result<HiddenStats, &'static str> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Ok(HiddenStats {
        listeners: owned(names),
        certain: true,
        uncounted: owned(uncounted),
        ..HiddenStats::default()
    })
}

#[test]
fn what_is_not_counted_is_hidden_apart_from_the_others() {
    let listeners = "stats::0.0.0.0:8002\nready::[::]:19001\nweb::0.0.0.0:8080\n";
    for (excluded, names, not_counted) in [
        (vec![], vec!["stats", "web"], vec!["ready"]),
        (vec!["0.0.0.0_8002"], vec!["web"], vec!["stats", "ready"]),
        // That name in the stats may be an HTTP stat prefix.
        (vec!["stats"], vec!["stats", "web"], vec!["ready"]),
        (vec!["0.0.0.0:8002", "0.0.0.0_800"], vec!["stats", "web"], vec!["ready"]),
    ] {
        let found = hidden_with(listeners, &[], &excluded);
        assert_eq!(found, uncounted(&names, &not_counted), "{excluded:?}");
        let all = ["0.0.0.0_8002", "[__]_19001", "0.0.0.0_8080"];
        assert_eq!(hidden_with(listeners, &all, &excluded), hidden(&[], false), "{excluded:?}");
    }
    // One gauge for two listeners: either may have it.
    let two = "stats::0.0.0.0:8002\nweb::0.0.0.0:8080\n";
    let found = hidden_with(two, &["my.prefix"], &["0.0.0.0_8002"]).unwrap();
    assert_eq!(
        (found.listeners, found.uncounted),
        (vec!["web".to_owned()], vec!["stats".to_owned()])
    );
    // Its gauge is excluded by its stat_prefix, and is there.
    assert_eq!(hidden_with("m::127.0.0.1:1\n", &["metrics"], &["metrics"]), hidden(&[], false));
}

#[test]
fn copies_stand_for_no_listener() {
    let nothing = Exclusions { names: &[], ignored_suffixes: &[] };
    let lines = |name: &str, copies: bool| {
        let mut lines = format!(
            "listener.{name}.downstream_cx_active: 0\nlistener.{name}.downstream_pre_cx_active: 0\n"
        );
        if copies {
            for thread in ["main_thread", "worker_0", "worker_1"] {
                lines += &format!("listener.{name}.{thread}.downstream_cx_active: 0\n");
            }
        }
        lines
    };
    let admin = "listener.admin.downstream_cx_active: 1\nlistener.admin.downstream_pre_cx_active: 0\n\
        listener.admin.main_thread.downstream_cx_active: 1\n";
    let two = "a::127.0.0.1:1\nb::127.0.0.1:2\n";
    let gauges = lines("127.0.0.1_1", true) + admin;
    assert_eq!(hidden_in(two, &gauges, nothing), hidden(&["b"], true));
    // A listener whose stat_prefix is admin has workers.
    let its_workers = "listener.admin.worker_0.downstream_cx_active: 0\n";
    let gauges = format!("{gauges}{its_workers}");
    assert_eq!(hidden_in(two, &gauges, nothing), hidden(&[], false));
    // Its pre_cx alone is shown: what is counted is hidden.
    let pre_cx = format!("{admin}listener.127.0.0.1_1.downstream_pre_cx_active: 0\n");
    assert_eq!(hidden_in("a::127.0.0.1:1\n", &pre_cx, nothing), hidden(&["a"], true));
}

#[test]
fn nothing_is_said_of_an_envoy_that_hides_all_listeners_or_has_not_started_them() {
    let nothing = Exclusions { names: &[], ignored_suffixes: &[] };
    let web = "web::127.0.0.1:8080\n";
    assert_eq!(hidden_in(web, "", nothing), hidden(&[], false));
    let admin = "listener.admin.downstream_cx_active: 1\n";
    let workers = |started: u8| format!("{admin}listener_manager.workers_started: {started}\n");
    assert_eq!(hidden_in(web, &workers(1), nothing), hidden(&["web"], true));
    let error = hidden_in(web, &workers(0), nothing).unwrap_err();
    assert!(error.contains("is starting"), "{error}");
}

#[test]
fn garbage_is_not_a_list_of_listeners() {
    for garbage in
        ["<html>It works</html>", "no colons", "{\"listener_statuses\": []}", ":", "a:b\n"]
    {
        let error = hidden_with(garbage, &[], &[]).unwrap_err();
        assert!(error.contains("not a list of listeners"), "{garbage}: {error}");
    }
    for nothing in ["", "\n", " \r\n"] {
        assert_eq!(hidden_with(nothing, &[], &[]), hidden(&[], false), "{nothing:?}");
    }
    // Whatever else it is, it ends, and in time.
    for odd in ["::", ":::", "::[", "::[]:", "[::]:::", "::::\n::::\n", "a::\n"] {
        assert!(hidden_with(odd, &["_", "0", "[]_"], &[]).is_ok(), "{odd}");
    }
    let colons = ":".repeat(200_000) + "\n" + &"::\n".repeat(50_000);
    assert!(hidden_with(&colons, &["_", "__"], &[]).is_ok());
}

#[test]
fn the_request_is_for_all_listeners_gauges_and_for_counters_where_they_matter() {
    let gauges = r"^(listener_manager\.workers_started|listener\..*\.downstream_(pre_)?cx_active|http\..*\.downstream_cx_(active|tx_bytes_buffered))$";
    let both = r"^(listener_manager\.workers_started|listener\..*\.downstream_((pre_)?cx_active|cx_total)|http\..*\.downstream_(cx_(active|tx_bytes_buffered)|rq_total))$";
    let escaped =
        |filter: &str| filter.replace('^', "%5E").replace('\\', "%5C").replace('|', "%7C");
    let nothing = Exclusions { names: &[], ignored_suffixes: &[] };
    for (period, expected) in [
        (0, format!("/stats?type=Gauges&filter={}", escaped(gauges))),
        (1, format!("/stats?filter={}", escaped(both))),
    ] {
        let quiet_period = std::time::Duration::from_secs(period);
        let options = Options { quiet_period, ..Options::default() };
        assert_eq!(GaugeNames::new(nothing, &options).path(), expected);
    }
}

#[test]
fn what_is_hidden_of_a_single_name_is_found_where_the_drain_depends_on_it() {
    let exclusions = Exclusions { names: &["x".to_owned()], ignored_suffixes: &[] };
    let shown = "http.admin.downstream_cx_active: 1\n\
        http.stats.downstream_cx_active: 0\n\
        http.web.downstream_cx_active: 0\n\
        http.web.downstream_cx_tx_bytes_buffered: 0\n\
        http.web.downstream_rq_total: 0\n\
        listener.127.0.0.1_1.downstream_cx_active: 0\n\
        listener.127.0.0.1_1.downstream_cx_total: 0\n\
        listener.127.0.0.1_1.downstream_pre_cx_active: 0\n\
        listener.127.0.0.1_1.worker_0.downstream_cx_active: 0\n\
        listener.admin.downstream_cx_active: 1\n\
        listener.envoy_internal_i.downstream_cx_active: 0\n\
        listener.envoy_internal_i.downstream_cx_total: 0\n\
        listener.x.downstream_cx_active: 0\n\
        listener.x.downstream_cx_total: 0\n";
    for (hides, unsent, [arrivals, arrivals_by_requests]) in [
        ("nothing", None, [false, false]),
        ("tx_bytes_buffered", Some("web"), [false, false]),
        ("listener.127.0.0.1_1.downstream_cx_total", None, [true, true]),
        ("listener.x.downstream_cx_total", None, [true, true]),
        ("listener.envoy_internal_i.downstream_cx_total", None, [true, true]),
        ("rq_total", None, [false, true]),
    ] {
        let lines: Vec<_> = shown.lines().filter(|line| !line.contains(hides)).collect();
        for (period, wait_for, expected) in [
            (0, WaitFor::Connections, (None, false)),
            (0, WaitFor::Requests, (unsent, false)),
            (9, WaitFor::Connections, (None, arrivals)),
            (9, WaitFor::Requests, (unsent, arrivals_by_requests)),
        ] {
            let quiet_period = std::time::Duration::from_secs(period);
            let options = Options { quiet_period, wait_for, ..Options::default() };
            let found = hidden_for(&options, "a::127.0.0.1:1\n", &lines.join("\n"), exclusions);
            let found = found.unwrap();
            assert_eq!((found.unsent.as_deref(), found.arrivals), expected, "{hides} {options:?}");
            assert!(found.listeners.is_empty() && found.uncounted.is_empty(), "{found:?}");
        }
    }
    // What an excluded listener that is hidden has accepted is taken off with its prefix.
    let options = Options { quiet_period: std::time::Duration::from_secs(9), ..Options::default() };
    let listed = "a::127.0.0.1:1\nx::127.0.0.9:9\n";
    let found = hidden_for(&options, listed, &shown.replace("listener.x.", "other."), exclusions);
    let found = found.unwrap();
    assert_eq!((found.arrivals, found.listeners), (true, vec!["x".to_owned()]));
}
