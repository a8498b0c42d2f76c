use super::super::status::tests::{ago, draining, ended, error, idle};
use super::*;
use crate::drain::Outcome;

fn style(columns: u16) -> PageStyle {
    PageStyle { columns, colour: false, plot: false }
}

/// The page with each row's parts on one line.
fn rows(snapshot: &Snapshot) -> String {
    snapshot.page(style(500))
}

#[test]
fn the_page_is_short_while_idle() {
    assert_eq!(
        idle().page(style(80)),
        format!(
            "2023-11-14T22:13:20Z  envoy-shutdown-manager {VERSION}\n\
             Envoy       has not responded yet (at /admin/admin.sock)\n\
             phase       idle (no drain), since 22:13:15\n\
             waiting     no hook\n"
        )
    );
}

#[test]
fn the_page_shows_what_a_drain_waits_for_and_what_comes_next() {
    let page = rows(&draining());
    for row in [
        "Envoy       DRAINING (at /admin/admin.sock, 1s ago)\n",
        "phase       waiting_for_connections, since 22:12:20; drain 2, for 1m12s\n",
        "open        3, threshold 1 (2s ago, at most 6)  ####################....................\n",
        "            2 HTTP: each ends with its next response, or by Envoy's idle timeout\n",
        "            1 TCP: each ends when a side closes it: no protocol asks it to leave\n",
        "            requests in flight: 1\n",
        "listeners        2  0.0.0.0_8443\n                 1  0.0.0.0_8080\n",
        "HTTP             2  ingress_\"http\"\n",
        "new         4 accepted (0.069 a second), the latest noticed 20s ago: clients or a balancer \
         still send; counted since 22:12:20\n",
        "next        poll in 2s; gives up in 47s, at 22:14:07\n",
        "history     requested 22:12:07 with check-delay=10s; out of service 22:12:10; \
         polls so far 7, failed 29\n",
        "waiting     exec hooks: 2, Envoy's (/shutdown): 1\n",
        "last error  GET /stats on \"x\": no (4s ago, 3 in a row)\n",
        "not seen    Envoy's stats_config",
        "last drain  drain 1: gave up at the drain timeout: 9 open at the last poll; took 1m1s, \
         ended 10m ago\n",
    ] {
        assert!(page.contains(row), "{row} in {page}");
    }
}

#[test]
fn what_a_drain_does_not_wait_for_is_told_from_what_it_waits_for() {
    let mut snapshot = Snapshot { wait_for: WaitFor::Requests, injected: Some(42), ..draining() };
    let progress = snapshot.progress.as_mut().unwrap();
    let (poll, _) = progress.last_poll.as_mut().unwrap();
    poll.in_use = 2;
    progress.quiet_since = Some(ago(7_500));
    let page = rows(&snapshot);
    for row in [
        "open        3 (2s ago, at most 6)  ####################....................\n",
        "holding     2, threshold 1: requests in flight, and connections other than HTTP\n",
        "quiet       for 7s: the delay ends after the quiet period\n",
        "pressure    0.420; the latest poll shows none\n",
    ] {
        assert!(page.contains(row), "{row} in {page}");
    }
    let (poll, _) = snapshot.progress.as_mut().unwrap().last_poll.as_mut().unwrap();
    poll.breakdown.pressure = Some(41);
    assert!(
        rows(&snapshot).contains("pressure    0.420; Envoy had read 0.410 at the latest poll\n")
    );
}

#[test]
fn an_envoy_that_is_out_of_service_with_no_drain_is_said_to_be() {
    let mut snapshot = idle();
    snapshot.counters.envoy = EnvoyState::Draining;
    assert!(rows(&snapshot).contains("DRAINING: out of service with no drain; see restore"));
    let snapshot = Snapshot { phase: Phase::CheckDelay, ..snapshot };
    assert!(!rows(&snapshot).contains("with no drain"), "{}", rows(&snapshot));
}

#[test]
fn a_drain_that_has_ended_and_a_worker_that_is_down_are_shown() {
    let last = Some((ended(Outcome::timed_out(Some(9))), ago(1_000)));
    let snapshot =
        Snapshot { phase: Phase::Ended, progress: None, last, worker_running: false, ..draining() };
    let page = rows(&snapshot);
    for row in [
        "phase       ended, since",
        "open        9, threshold 1 (2s ago",
        "ended 1s ago\n",
        "worker      down",
    ] {
        assert!(page.contains(row), "{row} in {page}");
    }
    assert!(!page.contains("\nnext"), "{page}");
    // It took 61 s and ended a second ago.
    assert!(page.contains("history     requested 22:12:17 with check-delay=10s; polls"), "{page}");
    let plotted = snapshot.page(PageStyle { plot: true, ..style(80) });
    assert!(plotted.lines().count() >= page.lines().count() + 4, "the plot stays: {plotted}");
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    let mut snapshot = draining();
    snapshot.counters.error = Some(error(&format!("{} \u{5927}\u{5927} end", "word ".repeat(50))));
    snapshot.admin_address = "/a".repeat(300);
    for columns in [20, 21, 33, 80, 81, 200] {
        for (colour, plot) in [(false, true), (true, true)] {
            let page = snapshot.page(PageStyle { columns, colour, plot });
            for line in page.lines() {
                let bare = bare(line);
                let width: usize = bare.chars().map(super::columns).sum();
                assert!(width <= columns.into(), "{width} of {columns}: {line:?}");
            }
            assert!(page.contains("end"), "{page}");
        }
    }
}

/// The line without escape sequences.
fn bare(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |bare, part| bare + part.split_once('m').expect("an SGR sequence").1)
}

#[test]
fn colours_are_only_for_those_who_want_them() {
    let plain = draining().page(PageStyle { plot: true, ..style(80) });
    assert!(plain.is_ascii(), "{plain}");
    assert!(!plain.contains('\x1b'), "{plain:?}");
    let colours = draining().page(PageStyle { colour: true, ..style(80) });
    assert!(colours.contains("\x1b[33mDRAINING"), "{colours:?}");
    assert_eq!(colours.matches("\x1b[").count() % 2, 0, "each is ended: {colours:?}");
}

#[test]
fn the_plot_covers_the_drain_from_its_start_to_now() {
    let page = draining().page(PageStyle { plot: true, ..style(36) });
    let plot: Vec<_> = page.lines().skip_while(|line| !line.starts_with("          6 ")).collect();
    // 72 s in 24 columns: nothing was counted in the first 12 s, 6 in the next 30 s, then 4, and 3.
    assert_eq!(
        plot[..4],
        [
            "          6     ##########",
            "                ###################",
            "                ####################",
            "                ####################"
        ],
        "{page}"
    );
}

#[test]
fn what_cannot_be_seen_is_escaped_for_people_too() {
    let mut snapshot = draining();
    snapshot.admin_address = "/a\u{202e}b\nphase: x".to_owned();
    snapshot.counters.error = Some(error("a\u{1b}[2J\u{2028}b"));
    let (page, line) = (rows(&snapshot), snapshot.line());
    assert!(page.contains("/a\\u202eb\\nphase: x"), "{page:?}");
    assert!(page.contains("a\\u001b[2J\\u2028b ("), "{page:?}");
    assert!(line.ends_with("a\\u001b[2J\\u2028b\n"), "{line:?}");
}

#[test]
fn a_text_is_broken_between_words_or_where_it_must() {
    for (text, room, lines) in [
        ("", 5, vec![""]),
        ("abc def", 5, vec!["abc", "def"]),
        ("abc def", 7, vec!["abc def"]),
        ("abcdefgh", 3, vec!["abc", "def", "gh"]),
        ("ab  cd", 4, vec!["ab", "cd"]),
        ("a bcdefgh i", 4, vec!["a", "bcde", "fgh", "i"]),
    ] {
        let found: Vec<_> =
            wrap(text, room).iter().map(|line| line.trim_end().to_owned()).collect();
        assert_eq!(found, lines, "{text:?} in {room}");
    }
}
