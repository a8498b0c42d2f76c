//! `status --watch`: in place on a terminal, and change by change elsewhere.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::support::prelude::*;
use crate::support::process::{command, program};
use crate::support::terminal::wait_stopped;

const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (200, 50);

fn watch(sidecar: &Sidecar, size: (u16, u16)) -> AtTerminal {
    let control = format!("--control-socket={}", sidecar.control_socket().display());
    AtTerminal::run(&["status", "--watch", &control], size, &[])
}

/// A proxy before a sidecar's control socket, and the option that leads there.
fn proxy(sidecar: &Sidecar) -> (AdminProxy, String) {
    let proxy = AdminProxy::unix(&Address::Unix(sidecar.control_socket().to_owned()));
    let control = format!("--control-socket={}", proxy.admin_address());
    (proxy, control)
}

/// Whether it is the first line of a page.
fn has_time(line: &str) -> bool {
    line.starts_with("20") && line.contains("Z  envoy-shutdown-manager ")
}

#[test]
fn a_whole_drain_is_watched_in_place_on_a_terminal_of_any_size() {
    for size in [SMALL, LARGE] {
        let envoy = Envoy::builder().http("http").tcp("tcp").start();
        let sidecar = Sidecar::beside(&envoy);
        let mut watch = watch(&sidecar, size);
        let screen = watch.wait_shown(IDLE);
        assert!(screen.is_in_place(), "{screen:?}");
        let client = connect(&envoy);
        let mut hook = sidecar.hook(&[]);
        assert_drain_waits(&sidecar, &mut hook, &envoy, 1);
        watch.wait_shown(WAITING_FOR_CONNECTIONS);
        watch.wait_shown("1, threshold 0");
        drop(client);
        assert_exits(&mut hook, 0, NONE_OPEN);
        let screen = watch.wait_shown(NONE_OPEN);
        assert!(!screen.shows(WAITING_FOR_CONNECTIONS), "not in place; {}", screen.report());
        assert!(screen.pages >= 3 && screen.is_in_place(), "{screen:?}");
        watch.press("q");
        let screen = watch.assert_leaves();
        screen.assert_fits();
        // The last page stays, with its time.
        assert!(screen.shows(NONE_OPEN) && has_time(&screen.lines()[0]), "{}", screen.report());
        assert!(screen.is_in_place(), "{}", screen.report());
    }
}

#[test]
fn a_watch_that_is_killed_leaves_its_page_on_a_screen_that_a_shell_can_use() {
    // As the end of its container does.
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let mut watch = watch(&sidecar, SMALL);
    watch.wait_screen("two pages", |screen| screen.pages >= 2);
    watch.signal(Signal::SIGKILL);
    assert_eq!(watch.wait().code(), None);
    let screen = watch.wait_screen("a whole page", Screen::is_normal);
    screen.assert_fits();
    assert!(screen.shows(IDLE) && screen.is_in_place(), "{}", screen.report());
}

#[test]
fn a_page_of_more_lines_than_the_terminal_has_is_cut_and_does_not_scroll() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let mut watch = watch(&sidecar, (80, 2));
    let screen = watch.wait_screen("two pages", |screen| screen.pages >= 2);
    assert_eq!(screen.lines().len(), 2, "{}", screen.report());
    watch.press("q");
    watch.assert_leaves().assert_fits();
}

#[test]
fn every_end_of_a_watch_leaves_the_terminal_as_it_was() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    for keys in ["q", "Q", "\x03", "xyz\x1aq"] {
        let mut watch = watch(&sidecar, SMALL);
        watch.wait_shown(IDLE);
        watch.press(keys);
        let screen = watch.assert_leaves();
        assert!(screen.shows(IDLE), "after {keys:?} {}", screen.report());
        assert!(!screen.shows("xyz"), "keys are shown; {}", screen.report());
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let mut watch = watch(&sidecar, SMALL);
        watch.wait_shown(IDLE);
        watch.signal(signal);
        watch.assert_leaves();
    }
}

#[test]
fn a_watch_ends_when_its_terminal_has_gone() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let mut watch = watch(&sidecar, SMALL);
    watch.wait_shown(IDLE);
    watch.hang_up();
    let status = watch.wait();
    assert_eq!(status.code(), Some(0), "{status:?}");
}

#[test]
fn a_watch_is_one_connection_and_follows_the_size_of_its_terminal() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let (proxy, control) = proxy(&sidecar);
    let mut watch = AtTerminal::run(&["status", "--watch", &control], SMALL, &[]);
    watch.wait_screen("three pages", |screen| screen.pages >= 3);
    watch.resize((100, 30));
    proxy.wait_for("GET /status?as=page&columns=100&");
    watch.press("q");
    watch.assert_leaves();
    let requests = proxy.requests();
    assert!(requests.iter().all(|(_, line)| line.contains("&plot=1")), "{requests:?}");
    assert!(requests[0].1.contains("&columns=80&"), "{requests:?}");
    assert_eq!(proxy.connections(), 1, "for {} requests", requests.len());
    for (earlier, later) in requests.iter().zip(&requests[1..requests.len() - 1]) {
        assert_took("a page after the one before", later.0 - earlier.0, 0.5..1.5);
    }
}

#[test]
fn a_new_size_is_seen_at_once() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let (proxy, control) = proxy(&sidecar);
    let watch = AtTerminal::run(&["status", "--watch", &control], SMALL, &[]);
    let first = proxy.wait_for("GET /status?as=page&columns=80&");
    watch.wait_screen("a page", |screen| screen.pages >= 1);
    let mut last = first;
    // Six of them, or each would take a second.
    for columns in 101..=106 {
        // Not while it waits for the page before, which it would ask for first.
        let pages = usize::from(columns - 100);
        watch.wait_screen("the page before", |screen| screen.pages >= pages);
        watch.resize((columns, 30));
        // The kernel sends it to the terminal's own processes, which a shell makes of this one.
        watch.signal(Signal::SIGWINCH);
        last = proxy.wait_for(&format!("GET /status?as=page&columns={columns}&"));
    }
    assert_took("six new sizes", last - first, 0.0..1.2);
}

#[test]
fn colours_are_asked_for_where_they_are_wanted() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    for (env, colours) in [
        (("NO_COLOR", ""), true),
        (("NO_COLOR", "1"), false),
        (("TERM", "dumb"), false),
        (("TERM", "xterm"), true),
    ] {
        let (proxy, control) = proxy(&sidecar);
        let mut status = AtTerminal::run(&["status", &control], (120, 24), &[env]);
        assert_eq!(status.wait().code(), Some(0));
        let screen = status.wait_shown(IDLE);
        assert!(screen.is_normal() && screen.pages == 0, "{screen:?}");
        assert!(colours || !screen.has_colours, "{env:?}");
        let colour = if colours { "1" } else { "0" };
        proxy.wait_for(&format!("GET /status?as=page&columns=120&colour={colour}&plot=0 "));
    }
    let (proxy, control) = proxy(&sidecar);
    assert_eq!(run(&["status", &control]).wait().code, Some(0));
    proxy.wait_for("GET /status?as=page&columns=80&colour=0&plot=0 ");
    let watch = AtTerminal::run(&["status", "--watch", &control], SMALL, &[("NO_COLOR", "1")]);
    let screen = watch.wait_screen("two pages", |screen| screen.pages >= 2);
    assert!(!screen.has_colours);
    proxy.wait_for("GET /status?as=page&columns=80&colour=0&plot=1 ");
}

#[test]
fn a_terminal_that_shows_nothing_in_place_has_the_changes() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let control = format!("--control-socket={}", sidecar.control_socket().display());
    let watch = AtTerminal::run(&["status", "--watch", &control], SMALL, &[("TERM", "dumb")]);
    let screen = watch.wait_shown(IDLE);
    assert!(screen.is_normal() && screen.pages == 0, "{screen:?}");
    let json = AtTerminal::run(&["status", "--watch", "--json", &control], LARGE, &[]);
    let screen = json.wait_shown("\"phase\":\"idle\"");
    assert!(screen.is_normal() && screen.pages == 0, "{screen:?}");
}

#[test]
fn a_watch_survives_a_restart_of_the_sidecar() {
    let admin = FakeAdmin::unix();
    let mut sidecar = Sidecar::beside(&admin);
    let mut watch = watch(&sidecar, SMALL);
    watch.wait_shown(IDLE);
    sidecar.kill();
    let screen = watch.wait_shown("sidecar lost: attempt 2, since ");
    assert!(screen.shows(IDLE), "the last page is not in view; {}", screen.report());
    assert!(screen.lines()[1].ends_with(": nothing listens"), "{}", screen.report());
    let _next = Sidecar::builder().beside(&admin).replacing(&sidecar).start();
    watch.wait_screen("the next sidecar", |screen| !screen.shows("sidecar lost"));
    watch.wait_shown(IDLE);
    watch.press("q");
    watch.assert_leaves().assert_fits();
}

#[test]
fn a_watch_whose_sidecar_is_frozen_says_so_and_ends_at_once() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let mut watch = watch(&sidecar, SMALL);
    watch.wait_shown(IDLE);
    sidecar.signal(Signal::SIGSTOP);
    let screen = watch.wait_shown("sidecar lost: attempt 1, since ");
    assert!(screen.lines()[1] == "timed out", "{}", screen.report());
    watch.press("q");
    watch.assert_leaves();
    sidecar.signal(Signal::SIGCONT);
}

#[test]
fn a_watch_that_finds_no_sidecar_leaves_the_terminal_alone() {
    let args = ["status", "--watch", "--control-socket=/nonexistent/control.sock"];
    let mut watch = AtTerminal::run(&args, SMALL, &[]);
    assert_eq!(watch.wait().code(), Some(3));
    let screen = watch.wait_shown("no sidecar could be reached: ");
    assert!(screen.is_normal() && screen.pages == 0, "{screen:?}");
}

#[test]
fn a_pipe_has_each_change_behind_its_time_over_one_connection() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    sidecar.wait_log(ENVOY_RESPONDS);
    let (proxy, control) = proxy(&sidecar);
    let watch = run(&["status", "--watch", &control]);
    let json = run(&["status", "--watch", "--json", &control]);
    watch.wait_line(IDLE);
    json.wait_line("\"phase\":\"idle\"");
    let mut hook = start_drain(&sidecar, &admin);
    watch.wait_line(WAITING_FOR_CONNECTIONS);
    json.wait_line(WAITING_FOR_CONNECTIONS);
    finish_drain(&admin, &mut hook);
    watch.wait_line(NONE_OPEN);
    json.wait_line("\"phase\":\"ended\"");
    let lines = watch.lines();
    assert!(has_time(&lines[0]), "{lines:?}");
    let blocks = lines.iter().filter(|line| has_time(line)).count();
    let ends = lines.iter().filter(|line| line.is_empty()).count();
    assert!(blocks >= 3 && ends.abs_diff(blocks) <= 1, "{}", watch.report());
    let objects = json.lines();
    assert!(objects.len() >= 3, "{}", json.report());
    for object in &objects {
        Status::parse(object);
    }
    assert_eq!(proxy.connections(), 2, "of two watches");
}

#[test]
fn a_lost_sidecar_is_said_once_beside_a_pipe_and_that_it_is_back_once() {
    let admin = FakeAdmin::unix();
    let mut sidecar = Sidecar::beside(&admin);
    let (proxy, control) = proxy(&sidecar);
    let watch = run(&["status", "--watch", &control]);
    watch.wait_line(IDLE);
    sidecar.kill();
    watch.wait_line("sidecar lost: ");
    let tried = proxy.connections();
    wait_value("two more attempts", || proxy.connections(), |n| *n >= tried + 2);
    let next = Sidecar::builder().beside(&admin).replacing(&sidecar).start();
    watch.wait_line("the sidecar is back");
    let mut hook = start_drain(&next, &admin);
    watch.wait_line(WAITING_FOR_CONNECTIONS);
    finish_drain(&admin, &mut hook);
    watch.wait_line(NONE_OPEN);
    for said in ["sidecar lost: ", "the sidecar is back"] {
        let times = watch.lines().iter().filter(|line| line.contains(said)).count();
        assert_eq!(times, 1, "{said:?}; {}", watch.report());
    }
}

#[test]
fn a_watch_whose_reader_has_gone_ends_although_nothing_changes() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let control = format!("--control-socket={}", sidecar.control_socket().display());
    let mut command = command(&program());
    command.args(["status", "--watch", &control]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("run it");
    let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    assert!(has_time(line.trim_end()), "{line}");
    drop(reader);
    let status = wait_for("its end", || child.try_wait().expect("wait for it"));
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn a_watch_that_was_stopped_for_longer_than_its_connection_is_kept_goes_on() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let (proxy, control) = proxy(&sidecar);
    let watch = run(&["status", "--watch", &control]);
    watch.wait_line(IDLE);
    watch.signal(Signal::SIGSTOP);
    wait_stopped(watch.pid());
    wait_value("the end of its connection", || proxy.ended_connections(), |n| *n == 1);
    watch.signal(Signal::SIGCONT);
    wait_value("another connection", || proxy.connections(), |n| *n == 2);
    let mut hook = start_drain(&sidecar, &admin);
    watch.wait_line(WAITING_FOR_CONNECTIONS);
    finish_drain(&admin, &mut hook);
    assert!(!watch.lines().iter().any(|line| line.contains("lost")), "{}", watch.report());
}

#[test]
fn a_status_finds_the_sidecar_of_its_admin_address() {
    let dir = temp_dir("admin");
    let control = dir.path().join("shutdown-manager.sock");
    let admin = format!("--admin-address={}", dir.path().join("admin.sock").display());
    let sidecar = Sidecar::builder().admin(dir.path().join("admin.sock").display());
    let sidecar = sidecar.finds_control_socket_at(&control).start();
    for args in [&["status", &admin][..], &["status", "--json", &admin]] {
        let exit = run(args).wait();
        assert_eq!(exit.code, Some(0), "{exit:?}");
        assert!(exit.output.contains(IDLE), "{exit:?}");
    }
    drop(sidecar);
    let exit = run(&["status", &admin]).wait();
    let reason = format!("no sidecar could be reached: {}: no such socket", control.display());
    assert!(exit.code == Some(3) && exit.output.starts_with(&reason), "{exit:?}");
}
