//! The hook as a client of the control socket.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{assert_drain_can_start, assert_no_drain_started};
use crate::support::Timeline;
use crate::support::http::find;
use crate::support::net::Server;
use crate::support::prelude::*;

#[test]
fn the_admin_address_of_a_hook_applies_to_its_drain() {
    let right = FakeAdmin::unix();
    // One that was given no address itself, as Contour's is not.
    let sidecar = Sidecar::builder().start();
    right.set_open(1);
    let mut hook = sidecar.hook(&["--admin-address", &right.admin_address()]);
    wait_open_connections(&sidecar, 1);
    assert_eq!(sidecar.status().admin_address(), right.admin_address());
    hook.assert_running();
    right.set_open(0);
    assert_exits(&mut hook, 0, "drained");
    assert_eq!(right.count(Route::Fail), 1);
}

#[test]
fn however_an_admin_socket_is_spelled_hook_and_sidecar_mean_the_same_one() {
    let rows = named([
        ("a link", ("LINK/admin.sock", "REAL/admin.sock")),
        ("the other way round", ("REAL/admin.sock", "LINK/admin.sock")),
        ("dots", ("REAL/admin.sock", "LINK/../NAME/./admin.sock")),
        ("slashes", ("REAL//admin.sock", "REAL/admin.sock")),
        ("relative", ("./admin.sock", "REAL/admin.sock")),
        ("relative in the hook", ("REAL/admin.sock", "unix:./admin.sock")),
    ]);
    for_each_case(rows, |name, (own, given)| {
        let (admin, dir) = (FakeAdmin::unix(), temp_dir("link"));
        let socket = Path::new(&admin.admin_address()).canonicalize().expect("a path");
        let real = socket.parent().expect("a directory");
        let link = dir.path().join("link");
        symlink(real, &link).expect("make a link");
        let text = |path: &Path| path.to_str().expect("a path").to_owned();
        let folder = real.file_name().expect("a name").to_str().expect("a name");
        let address = |spelled: &str| {
            let spelled = spelled.replace("LINK", &text(&link)).replace("NAME", folder);
            spelled.replace("REAL", &text(real))
        };
        let inside = format!("cd '{}' && exec \"$@\"", link.display());
        let inside = ["sh", "-c", &inside, "sh"];
        let sidecar = Sidecar::builder().admin(address(own)).under(inside).start();
        sidecar.wait_log(logged(STARTED).with("admin_address", socket.display()));
        let control = format!("--control-socket={}", sidecar.control_socket().display());
        let given = format!("--admin-address={}", address(given));
        let mut hook = run_under(&inside, &["shutdown", &control, &given]);
        assert_exits(&mut hook, 0, "drained");
        let requested = format!("admin-address={}", socket.display());
        sidecar.wait_log(logged(DRAIN_STARTED).with("requested", requested));
        assert_eq!(admin.count(Route::Fail), 1, "{name}");
    });
}

#[test]
fn a_hook_that_a_sidecar_refuses_for_another_envoy_ends_with_one_sentence() {
    let fake = FakeAdmin::unix();
    let body = "this sidecar drains the Envoy at /own/admin.sock alone\n";
    let length = body.len();
    let conflict = format!("HTTP/1.1 409 Conflict\r\nContent-Length: {length}\r\n\r\n{body}");
    fake.fault(Route::Other, Fault::Raw(conflict.into()));
    let control = format!("--control-socket={}", fake.admin_address());
    let exit = run(&["shutdown", &control, "--admin-address=[0::1]:9001"]).wait();
    assert_eq!((exit.code, exit.output.lines().count()), (Some(3), 1), "{exit:?}");
    let words =
        ["the Envoy at /own/admin.sock alone", "the one at [0::1]:9001", "--control-socket"];
    assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
    assert_eq!(fake.requests().len(), 1, "it is final: {:?}", fake.requests());
    let mut wrong = run(&["shutdown", &control, "--admin-address=localhost:9001", "now"]);
    assert_exits(&mut wrong, 3, "the one at localhost:9001");
}

#[test]
fn a_hook_that_was_called_wrongly_is_logged_though_its_sidecar_refuses_it() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let mut hook = sidecar.hook(&["--admin-address=/other/admin.sock", "--speed=1"]);
    assert_exits(&mut hook, 3, "the one at /other/admin.sock");
    let error = "shutdown has no option --speed";
    sidecar.wait_log(logged(HOOK_CALLED_WRONGLY).containing("error", error));
    sidecar.assert_not_logged(DRAIN_STARTED);
}

#[test]
fn a_hook_whose_options_its_sidecar_rejects_ends_as_one_that_was_called_wrongly() {
    let fake = FakeAdmin::unix();
    let body = "a drain has no option \"speed\"\n";
    let length = body.len();
    let rejected = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {length}\r\n\r\n{body}");
    fake.fault(Route::Other, Fault::Raw(rejected.into()));
    let exit = run(&["shutdown", &format!("--control-socket={}", fake.admin_address())]).wait();
    assert_eq!((exit.code, exit.output.lines().count()), (Some(2), 1), "{exit:?}");
    let sentence = "the sidecar rejected the drain's options: a drain has no option \"speed\"";
    assert!(exit.output.starts_with(sentence), "{exit:?}");
    assert_eq!(fake.requests().len(), 1, "it is final: {:?}", fake.requests());
}

#[test]
fn a_hook_with_many_long_options_drains_with_as_many_as_fit() {
    let name = |n| format!("listener_{n:03}.{}", "/".repeat(40));
    // Each takes 142 bytes of the request, of which 12,288 may be options.
    let rows = named([("all", (80, 80, 0)), ("some", (300, 86, 2))]);
    for_each_case(rows, |case, (given, sent, code)| {
        let admin = FakeAdmin::unix();
        let sidecar = Sidecar::beside(&admin);
        let excludes: Vec<_> = (0..given).map(|n| format!("--exclude={}", name(n))).collect();
        let mut hook = sidecar.hook(&excludes.iter().map(String::as_str).collect::<Vec<_>>());
        assert_exits(&mut hook, code, NONE_OPEN);
        sidecar.wait_log(logged(DRAIN_STARTED).with("exclude", name(sent - 1)));
        sidecar.assert_not_logged(logged(DRAIN_STARTED).with("exclude", name(sent)));
        let wrong = logged(HOOK_CALLED_WRONGLY).containing("error", "--exclude: beyond the 12288");
        sidecar.assert_times_logged(wrong, (code / 2).try_into().expect("a count"));
        assert_eq!(admin.count(Route::Fail), 1, "{case}");
    });
}

#[test]
fn a_hook_right_after_a_request_that_waits_drains() {
    for count in 0..8 {
        let admin = FakeAdmin::unix();
        let sidecar = Sidecar::beside(&admin);
        let waiters: Vec<_> =
            (0..count).map(|_| sidecar.control().start_get("/shutdown")).collect();
        wait_envoy_hooks(&sidecar, count);
        let last = sidecar.control().start_get("/shutdown");
        assert_exits(&mut sidecar.hook(&[]), 0, "drained");
        for waiter in waiters.iter().chain([&last]) {
            assert_eq!(waiter.response(), OK);
        }
    }
}

#[test]
fn a_hook_gives_up_on_a_frozen_sidecar_which_does_not_drain_when_it_thaws() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    freeze(&sidecar);
    let exit = sidecar.hook(&[]).wait();
    assert_eq!(exit.code, Some(3), "{exit:?}");
    assert_took("the hook", exit.took, 9.9..13.0);
    let sentence = "did not respond within 10s; it starts no drain when it wakes";
    assert!(exit.output.lines().count() == 1 && exit.output.contains(sentence), "{exit:?}");
    thaw(&sidecar);
    sidecar.wait_log(DRAIN_REQUEST_EXPIRED);
    assert_no_drain_started(&sidecar, &admin);
    assert_drain_can_start(&sidecar, &admin);
}

#[test]
fn a_hook_gives_up_on_a_frozen_sidecar_whose_backlog_is_full() {
    let small = "echo 8 > /proc/sys/net/core/somaxconn && exec \"$@\"";
    let small = ["unshare", "--net", "sh", "-c", small, "sh"];
    let tried = run_under(&small, &["--version"]).wait();
    if tried.code != Some(0) {
        println!("SKIPPED: no backlog can be made small here: {}", tried.output);
        return;
    }
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::builder().beside(&admin).under(small).start();
    freeze(&sidecar);
    let mut backlog = Vec::new();
    while let Ok(connection) = sidecar.control().try_connect() {
        backlog.push(connection);
        assert!(backlog.len() < 100, "the backlog does not get full");
    }
    let mut another = sidecar.run(&["shutdown-manager", "--admin-address=/none"]);
    let exit = sidecar.hook(&[]).wait();
    assert_eq!(exit.code, Some(3), "{exit:?}");
    assert_took("the hook", exit.took, 4.9..10.0);
    assert!(exit.output.starts_with("no sidecar could be reached: "), "{exit:?}");
    assert_exits(&mut another, 1, "another shutdown-manager listens at ");
    thaw(&sidecar);
    drop(backlog);
    let healthz = || sidecar.control().try_request("GET", "/healthz", PATIENCE).ok();
    wait_for("all of them to be accepted", healthz);
    assert_no_drain_started(&sidecar, &admin);
    assert_drain_can_start(&sidecar, &admin);
}

#[test]
fn a_sidecar_that_thaws_while_its_hook_still_waits_drains_once() {
    // Before and after the request has expired, which the hook then repeats.
    let rows = named([("soon", (1, false)), ("late", (5, true))]);
    for_each_case(rows, |name, (seconds, repeats)| {
        let admin = FakeAdmin::unix();
        admin.set_open(1);
        let sidecar = Sidecar::beside(&admin);
        freeze(&sidecar);
        let (start, mut hook) = (Instant::now(), sidecar.hook(&[]));
        // The time itself is what is tested.
        thread::sleep(Duration::from_secs(seconds));
        hook.assert_running();
        thaw(&sidecar);
        wait_open_connections(&sidecar, 1);
        assert_eq!(sidecar.status().drain(), 1);
        let seconds = seconds as f32;
        assert_took(name, start.elapsed(), seconds..seconds + 3.0);
        let expired = sidecar.times_logged(DRAIN_REQUEST_EXPIRED) > 0;
        assert_eq!(expired, repeats, "{name}: {}", sidecar.report());
        hook.assert_running();
        finish_drain(&admin, &mut hook);
        assert_eq!(admin.count(Route::Fail), 1, "{name}");
    });
}

#[test]
fn a_hook_whose_sidecar_is_lost_again_and_again_gives_up() {
    let (dir, requests) = (temp_dir("control"), Timeline::default());
    let path = dir.path().join("s");
    let seen = requests.clone();
    // It starts a drain, and disconnects the client that waits for its end.
    let sidecar = Server::start(&Address::Unix(path.clone()), move |mut client| {
        let mut head = Vec::new();
        while find(&head, b"\r\n\r\n").is_none() {
            let mut piece = [0; 1024];
            match client.read(&mut piece) {
                Ok(length @ 1..) => head.extend_from_slice(&piece[..length]),
                // It was only looked for.
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let line = head.lines().next().unwrap_or_default();
        seen.push(line.split(['?', ' ']).take(2).collect::<Vec<_>>().join(" "));
        if line.starts_with("POST /drain?") {
            let started = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nstarted 1\n";
            let _gone_already = client.write_all(started.as_bytes());
        }
    });
    let sidecar = sidecar.expect("listen");
    let exit = run(&["shutdown", &format!("--control-socket={}", path.display())]).wait();
    let sentence = "the sidecar was lost too often: ";
    assert!(exit.code == Some(3) && exit.output.contains(sentence), "{exit:?}");
    for request in ["POST /drain", "GET /shutdown"] {
        let times = requests.all().iter().filter(|(_, line)| line == request).count();
        assert_eq!(times, 11, "{request}: the first, and again after each of ten losses");
    }
    assert_took("the hook", exit.took, 1.9..4.0);
    drop(sidecar);
}

#[test]
fn a_hook_that_searches_for_a_lost_sidecar_shows_nothing_of_the_lost_one() {
    let admin = FakeAdmin::unix();
    let mut sidecar = Sidecar::beside(&admin);
    let mut hook = start_drain(&sidecar, &admin);
    sidecar.kill();
    // It searches for 5 s, and would show each second how the drain goes.
    let exit = hook.wait();
    assert_eq!(exit.code, Some(3), "{exit:?}");
    let shown = exit.output.lines().skip_while(|line| !line.contains("the sidecar was lost ("));
    let shown: Vec<_> = shown.collect();
    assert_eq!(shown.len(), 2, "not the loss and the end: {shown:?} of {exit:?}");
    assert!(shown[1].starts_with("no sidecar could be reached: "), "{exit:?}");
}

#[test]
fn a_hook_that_is_terminated_ends_at_once_and_its_drain_goes_on() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let admin = FakeAdmin::unix();
        let sidecar = Sidecar::beside(&admin);
        let mut hook = start_drain(&sidecar, &admin);
        hook.signal(signal);
        let exit = hook.wait();
        assert_eq!(exit.code, None, "not ended by {signal}: {exit:?}");
        // A hook that comes after the end would start another.
        let mut later = sidecar.hook(&[]);
        sidecar.wait_log(DRAIN_JOINED);
        finish_drain(&admin, &mut later);
        assert_eq!(sidecar.status().drain(), 1, "the drain did not go on after {signal}");
    }
}

#[test]
fn a_hook_that_comes_before_its_sidecar_waits_for_it() {
    let admin = FakeAdmin::unix();
    let dir = temp_dir("control");
    let path = dir.path().join("s");
    let mut hook = run(&["envoy", "shutdown", "--control-socket", path.to_str().expect("a path")]);
    // It tries every few milliseconds.
    wait_value("the hook to try", || hook.context_switches(), |n| *n > 5);
    hook.assert_running();
    admin.set_open(1);
    let sidecar = Sidecar::builder().beside(&admin).control_socket(&path).start();
    wait_open_connections(&sidecar, 1);
    hook.assert_running();
    finish_drain(&admin, &mut hook);
}

#[test]
fn without_a_sidecar_a_hook_ends_with_one_sentence() {
    let dir = temp_dir("control");
    let stale = dir.path().join("stale");
    leave_stale_socket(&stale, 0o600);
    let mut hooks =
        [("none", "no such socket"), ("stale", "nothing listens")].map(|(name, why)| {
            let path = dir.path().join(name).to_str().expect("a path").to_owned();
            let [hook, status] = ["shutdown", "status"]
                .map(|command| run(&[command, "--control-socket", path.as_str()]));
            (hook, status, format!("{path}: {why}"))
        });
    for (hook, status, why) in &mut hooks {
        for (process, expected) in [(hook, 4.9..8.0), (status, 0.0..3.0)] {
            let exit = process.wait();
            assert_eq!((exit.code, exit.output.lines().count()), (Some(3), 1), "{exit:?}");
            assert!(exit.output.starts_with("no sidecar could be reached: "), "{exit:?}");
            assert!(exit.output.contains(why.as_str()), "{exit:?}");
            assert_took(why, exit.took, expected);
        }
    }
    assert!(stale.exists(), "a hook removes nothing");
}

#[test]
fn envoys_admin_socket_in_the_control_sockets_place_is_one_sentence_without_its_help() {
    let envoy = Envoy::builder().tcp("tcp").start();
    let control = format!("--control-socket={}", envoy.admin_address());
    for (command, words) in [
        (
            "shutdown",
            "is another program's socket, which responded to the request to drain with 404",
        ),
        ("status", "it responded to /status with 404"),
    ] {
        let exit = run(&[command, &control]).wait();
        assert_eq!((exit.code, exit.output.lines().count()), (Some(3), 1), "{exit:?}");
        assert!(exit.output.starts_with("no sidecar could be reached: "), "{exit:?}");
        assert!(exit.output.contains(words), "{exit:?}");
        assert!(!exit.output.contains("/healthcheck"), "Envoy's page of help: {exit:?}");
        // The hook does not try again what cannot help.
        assert_took(command, exit.took, 0.0..1.5);
    }
    assert_eq!(envoy.ready(), "LIVE");
}

#[test]
fn of_a_body_that_is_no_sidecars_a_hook_shows_the_first_line_in_bounds() {
    let long = "x".repeat(999);
    let (page, line) = ("first\x1b[2J\nsecond\n", format!("{long}\u{fc}second\n"));
    let rows = named([
        ("a page", (page.to_owned(), "503: first\\u001b[2J".to_owned())),
        ("a long line", (line, format!("503: {long}"))),
    ]);
    for_each_case(rows, |name, (body, shown)| {
        let fake = FakeAdmin::unix();
        let head = format!("HTTP/1.1 503 Service Unavailable\r\nContent-Length: {}", body.len());
        fake.fault(Route::Other, Fault::Raw(format!("{head}\r\n\r\n{body}").into()));
        let exit = run(&["shutdown", &format!("--control-socket={}", fake.admin_address())]).wait();
        assert_eq!(exit.code, Some(3), "{name}: {exit:?}");
        let lines: Vec<_> = exit.output.lines().collect();
        assert_eq!(lines.len(), 2, "{name}: the loss and the end: {exit:?}");
        for line in lines {
            let rest = line.split_once(&shown).map(|(_, rest)| rest);
            let ends =
                |rest: &str| rest.starts_with("); searching") || rest.starts_with(" (after ");
            assert!(rest.is_some_and(ends), "{name}: {line}");
        }
    });
}

#[test]
fn a_process_of_another_user_is_not_believed() {
    let dir = temp_dir("liar");
    let everyone = fs::Permissions::from_mode(0o777);
    fs::set_permissions(dir.path(), everyone).expect("let all write there");
    let socket = dir.path().join("s");
    let control = format!("--control-socket={}", socket.display());
    let as_user = |id: &'static str| ["setpriv", "--reuid", id, "--clear-groups"];
    let can_start = run_under(&as_user("1234"), &["--version"]).wait();
    if can_start.code != Some(0) {
        return println!("SKIPPED: no process of another user: {}", can_start.output);
    }
    let other = run_under(&as_user("1234"), &["shutdown-manager", "--serve-port=0", &control]);
    other.wait_log(STARTED);
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).expect("let all connect");
    let exit = run_under(&as_user("65534"), &["shutdown", &control]).wait();
    assert_eq!(exit.code, Some(3), "it believed another user's process: {}", exit.output);
    let sentence = "a process of user 1234 listens, and this hook, of user 65534, believes";
    assert!(exit.output.contains(sentence), "{}", exit.output);
    other.assert_not_logged(DRAIN_STARTED);
}

#[test]
fn a_process_of_root_is_believed_by_any_users_hook() {
    let as_user = ["setpriv", "--reuid", "65534", "--clear-groups"];
    let can_start = run_under(&as_user, &["--version"]).wait();
    let (admin, dir) = (FakeAdmin::unix(), temp_dir("root"));
    let is_root = fs::metadata(dir.path()).expect("its owner").uid() == 0;
    if can_start.code != Some(0) || !is_root {
        return println!("SKIPPED: no hook of another user than root: {}", can_start.output);
    }
    let everyone = fs::Permissions::from_mode(0o777);
    fs::set_permissions(dir.path(), everyone.clone()).expect("let all enter");
    let socket = dir.path().join("s");
    let sidecar = Sidecar::builder().beside(&admin).control_socket(&socket).start();
    fs::set_permissions(&socket, everyone).expect("let all connect");
    let control = format!("--control-socket={}", socket.display());
    let exit = run_under(&as_user, &["shutdown", &control]).wait();
    assert_eq!(exit.code, Some(0), "it did not believe root's sidecar: {}", exit.output);
    sidecar.wait_log(outcome("drained"));
}

#[test]
fn hook_and_sidecar_may_be_in_different_time_namespaces() {
    if !can_unshare("--time") {
        return;
    }
    const AHEAD: [&str; 3] = ["unshare", "--time", "--monotonic=100000"];
    for_each_case(named([("the hook", false), ("the sidecar", true)]), |name, is_sidecar| {
        let admin = FakeAdmin::unix();
        let builder = Sidecar::builder().beside(&admin);
        let sidecar = if is_sidecar { builder.under(AHEAD) } else { builder }.start();
        let control = format!("--control-socket={}", sidecar.control_socket().display());
        let wrapper = if is_sidecar { &["env"][..] } else { &AHEAD };
        let exit = run_under(wrapper, &["shutdown", &control]).wait();
        assert_eq!(exit.code, Some(0), "{name} is ahead: {}", exit.output);
        assert!(exit.took < Duration::from_secs(5), "{name} is ahead: {:?}", exit.took);
    });
}
