//! The command line of the built program: what it rejects before anything is done, and what it
//! prints.

use std::fs;
use std::path::Path;

use crate::support::prelude::*;

const COMMANDS: [&str; 3] = ["shutdown-manager", "shutdown", "status"];

/// Its stdout, its stderr, and its exit code, with a person at its terminal.
#[track_caller]
fn both_outputs(args: &[&str]) -> (String, String, Option<i32>) {
    let to = |script: &str| run_at_terminal(&["sh", "-c", script, "sh"], args).wait();
    let (out, err) = (to("exec \"$@\" 2>/dev/null"), to("exec \"$@\" >/dev/null"));
    assert_eq!(out.code, err.code, "{args:?}");
    (out.output, err.output, out.code)
}

fn help(command: &str) -> String {
    let (out, err, code) = both_outputs(&[command, "--help"]);
    assert_eq!((err.as_str(), code), ("", Some(0)), "{command} --help");
    out
}

/// The names of the options in a help text, with their dashes.
fn flags(help: &str) -> Vec<String> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with("--"));
    lines.map(|line| line.split(['=', ' ']).next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn bad_input_is_rejected_in_one_sentence_before_anything_is_done() {
    let dir = temp_dir("command-line");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    let control = format!("--control-socket={}", path("control.sock"));
    let name = "a".repeat(108 - path("").len());
    let too_long = format!("--control-socket={}", path(&name));
    // Removed at a start that gets this far.
    let stale = path("ready");
    fs::write(&stale, "").expect("write");
    let ready = format!("--ready-file={stale}");
    let (manager, hook, status) = (COMMANDS[0], COMMANDS[1], COMMANDS[2]);
    let rows: &[(&[&str], &str)] = &[
        (&[manager, "--check-interval=0"], "--check-interval: \"0\" is shorter than 10ms"),
        (&[manager, "--check-interval=5"], "--check-interval: \"5\""),
        (&[manager, "--check-interval", "5 s"], "--check-interval: \"5 s\""),
        (&[hook, "--check-delay=-1s"], "--check-delay: \"-1s\" is negative"),
        (&[hook, "--check-delay=2 days"], "--check-delay: \"2 days\""),
        (&[hook, "--check-delay="], "--check-delay: \"\""),
        (&[hook, "--check-delay=99999999999h"], "--check-delay: \"99999999999h\""),
        (&[manager, "--drain-delay=soon"], "--drain-delay: \"soon\" is not a duration"),
        (&["envoy", hook, "--drain-timeout=1h1"], "--drain-timeout: \"1h1\""),
        (&[manager, "--min-open-connections=-1"], "--min-open-connections: \"-1\""),
        (&[hook, "--min-open-connections=1.5"], "--min-open-connections: \"1.5\""),
        (&[hook, "--min-open-connections=99999999999999999999"], "is too large a number"),
        (&[manager, "--exclude="], "--exclude: "),
        (&[manager, "--admin-address=localhost"], "--admin-address: \"localhost\" is neither"),
        (&[hook, "--admin-address=http://localhost:9001"], "--admin-address: "),
        (&[hook, "--admin-address=localhost:0"], "--admin-address: "),
        (&[manager, "--admin-address=::1:9001"], "--admin-address: "),
        (&["envoy", manager, "--ready-file", ""], "--ready-file: \"\" is not a path"),
        (&[manager, "--log-format=xml"], "--log-format: \"xml\" is neither text nor json"),
        (&["--log-format=logfmt", manager], "--log-format: \"logfmt\" is neither"),
        (
            &[manager, "--check-delay=1", "--check-delay=1s"],
            "--check-delay: \"1\" is without a unit",
        ),
        (&[manager, "--check-delay"], "--check-delay needs a value"),
        (&[manager, "--check-delay", "--check-interval=1s"], "--check-delay needs a value"),
        (&[manager, "--no-restore=yes"], "--no-restore"),
        (&[manager, "--speed=1"], "shutdown-manager has no option --speed; see "),
        (&[hook, "--chek-delay=1s"], "--chek-delay; did you mean --check-delay? See "),
        (&[hook, "--no-restore"], "shutdown has no option --no-restore"),
        (&[hook, "--watch"], "shutdown has no option --watch"),
        (&[status, "--check-delay=1s"], "status has no option --check-delay"),
        (&[status, "--json=1"], "--json"),
        (&[manager, "now"], "now"),
        (&[hook, "-x"], "-x"),
        (&[hook, hook], hook),
        (&[manager, "--CHECK-DELAY=1s"], "no option --CHECK-DELAY"),
    ];
    for (args, names) in rows {
        let mut args = args.to_vec();
        // Not where a value is missing at the end, or it would be taken for one.
        if args.last() != Some(&"--check-delay") {
            args.push(&control);
            args.extend((args[0] != status).then_some(ready.as_str()));
        }
        assert_rejected(&args, names);
    }
    for args in [&[manager, "--check-delay=1s", too_long.as_str()][..], &[hook, &too_long]] {
        assert_rejected(args, "is a path longer than the 107 bytes");
    }
    for (args, names) in [
        (&[][..], "a command is missing"),
        (&["envoy"], "a command is missing"),
        (&["envoy", "envoy", manager], "there is no command \"envoy\""),
        (&["drain"], "there is no command \"drain\""),
        (
            &["shutdown-manage"],
            "there is no command \"shutdown-manage\"; did you mean shutdown-manager?",
        ),
        (&[""], "there is no command \"\""),
        (&["--check-delay=1s", manager], "--check-delay"),
        (&["-v", manager], "-v"),
    ] {
        assert_rejected(args, names);
    }
    let left: Vec<_> = fs::read_dir(dir.path()).expect("the directory").collect();
    assert!(left.len() == 1 && Path::new(&stale).exists(), "something was done: {left:?}");
}

#[track_caller]
fn assert_rejected(args: &[&str], names: &str) {
    let (out, err, code) = both_outputs(args);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {err}");
    assert!(err.starts_with("envoy-shutdown-manager: ") && err.contains(names), "{args:?}: {err}");
    assert_eq!(err.lines().count(), 1, "{args:?}: {err}");
}

#[test]
fn a_value_that_is_not_utf_8_is_rejected() {
    let dir = temp_dir("command-line");
    let control = dir.path().join("control.sock");
    let script = "exec \"$@\" --control-socket=\"$0\" --ready-file=\"$(printf '/\\377')\"";
    let wrapper = ["sh", "-c", script, control.to_str().expect("a path")];
    let exit = run_under(&wrapper, &["shutdown-manager"]).wait();
    assert_eq!((exit.code, exit.output.lines().count()), (Some(2), 1), "{exit:?}");
    assert!(exit.output.contains("--ready-file: the value is not UTF-8"), "{exit:?}");
    assert!(!control.exists());
}

/// Mistakes in a hook's command, with the sentence about each.
fn mistakes() -> Vec<(String, (Vec<&'static str>, &'static str))> {
    let unknown = "shutdown has no option --chek-delay; did you mean --check-delay? See";
    let rows: [(&[_], _); 6] = [
        (&["--chek-delay=1s"], unknown),
        (&["--chek-delay", "1s"], unknown),
        (&["--check-delay=1"], "--check-delay: \"1\" is without a unit"),
        (&["now"], "unexpected argument \"now\"; see"),
        (&["--drain-listeners=yes"], "--drain-listeners takes no value"),
        (&["--exclude"], "--exclude needs a value"),
    ];
    rows.map(|(args, sentence)| (args.join(" "), (args.to_vec(), sentence))).into()
}

#[test]
fn a_hook_that_was_called_wrongly_drains_with_the_rest_and_exits_with_2() {
    for_each_case(mistakes(), |name, (mistake, sentence)| {
        let admin = FakeAdmin::unix();
        let sidecar = Sidecar::beside(&admin);
        admin.set_open(1);
        let mut hook = sidecar.hook(&[&["--exclude=a"], mistake.as_slice()].concat());
        wait_open_connections(&sidecar, 1);
        hook.wait_line(&format!("envoy-shutdown-manager: {sentence}"));
        hook.wait_line("the drain starts all the same");
        hook.assert_running();
        admin.set_open(0);
        assert_exits(&mut hook, 2, NONE_OPEN);
        let wrong = logged(HOOK_CALLED_WRONGLY).with("level", "error").with("drain", 1);
        let started = logged(DRAIN_STARTED).with("exclude", "a").with("drain_listeners", "false");
        assert_logged(&sidecar, &[started, wrong.containing("error", sentence)]);
        assert_eq!(sidecar.times_logged(HOOK_CALLED_WRONGLY), 1, "{name}");
    });
}

#[test]
fn a_hook_that_was_called_wrongly_exits_with_2_whatever_the_outcome_and_with_3_without_a_sidecar() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let none = sidecar.control_socket().with_file_name("none");
    let none = format!("--control-socket={}", none.display());
    let mut alone = run(&["shutdown", "--chek-delay=1s", &none]);
    admin.set_open(1);
    let mut hook = sidecar.hook(&["--drain-timeout=100ms", "now", "--exclude=\u{1}", "then"]);
    assert_exits(&mut hook, 2, "gave up at the drain timeout");
    let both =
        "unexpected argument \"now\"; see envoy-shutdown-manager shutdown --help; unexpected";
    sidecar.wait_log(logged(HOOK_CALLED_WRONGLY).containing("error", both));
    assert_exits(&mut alone, 3, "no sidecar could be reached");
    sidecar.assert_times_logged(HOOK_CALLED_WRONGLY, 1);
}

#[test]
fn a_value_of_a_hook_that_is_not_utf_8_is_left_out() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let script = "exec \"$@\" --exclude=\"$(printf '\\377')\" --exclude=a";
    let control = format!("--control-socket={}", sidecar.control_socket().display());
    let mut hook = run_under(&["sh", "-c", script, "sh"], &["shutdown", &control]);
    assert_exits(&mut hook, 2, NONE_OPEN);
    let sentence = "--exclude: the value is not UTF-8";
    assert_logged(
        &sidecar,
        &[
            logged(DRAIN_STARTED).with("exclude", "a"),
            logged(HOOK_CALLED_WRONGLY).with("error", sentence),
        ],
    );
}

#[test]
fn at_a_terminal_a_hook_that_was_called_wrongly_starts_nothing() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let control = format!("--control-socket={}", sidecar.control_socket().display());
    for (_, (mistake, sentence)) in mistakes() {
        let args = [&["shutdown", &control], mistake.as_slice()].concat();
        assert_rejected(&args, sentence);
        // With the terminal as its stderr alone.
        let script = "exec \"$@\" 2>&0 </dev/null";
        let exit = run_at_terminal(&["sh", "-c", script, "sh"], &args).wait();
        assert_eq!((exit.code, exit.output.as_str()), (Some(2), ""), "{args:?}");
    }
    let status = sidecar.status();
    assert!(status.is_before_the_first_drain(), "{status:?}");
    sidecar.assert_not_logged(HOOK_CALLED_WRONGLY);
    assert_eq!(admin.count(Route::Fail), 0);
    let mut hook = run_at_terminal(&["sh", "-c", "exec \"$@\"", "sh"], &["shutdown", &control]);
    assert_exits(&mut hook, 0, "drained");
}

#[test]
fn contours_init_container_is_rejected() {
    for args in [
        &["bootstrap"][..],
        &["bootstrap", "/config/envoy.json", "--xds-address=contour", "--xds-port=8001"],
        &["envoy", "bootstrap"],
    ] {
        assert_rejected(args, "this image is for the container shutdown-manager only");
    }
}

#[test]
fn help_and_version_are_printed_on_stdout() {
    let version = format!("envoy-shutdown-manager {}\n", env!("CARGO_PKG_VERSION"));
    for (args, starts) in [
        (&["--version"][..], version.trim_end()),
        (&["-V"], version.trim_end()),
        (&["envoy", "--version"], version.trim_end()),
        (&["--help"], version.trim_end()),
        (&["-h"], version.trim_end()),
        (&["envoy", "--help"], version.trim_end()),
        (&["shutdown-manager", "--help"], "Usage: envoy-shutdown-manager [envoy] shutdown-manager"),
        (&["envoy", "shutdown-manager", "-h"], "Usage: envoy-shutdown-manager [envoy] shutdown-m"),
        (&["shutdown", "--help"], "Usage: envoy-shutdown-manager [envoy] shutdown [OPTIONS]"),
        (&["envoy", "shutdown", "--help"], "Usage: envoy-shutdown-manager [envoy] shutdown ["),
        (&["shutdown", "--check-delay=1s", "--help"], "Usage: envoy-shutdown-manager [envoy] shu"),
        (&["status", "--help"], "Usage: envoy-shutdown-manager status [OPTIONS]"),
    ] {
        let (out, err, code) = both_outputs(args);
        assert_eq!((err.as_str(), code), ("", Some(0)), "{args:?}");
        assert!(out.starts_with(starts), "{args:?}: {out}");
    }
}

#[test]
fn help_names_every_command_and_option() {
    let (overview, _, _) = both_outputs(&["--help"]);
    for command in COMMANDS {
        assert!(overview.contains(&format!(" {command} ")), "{command} is not in {overview}");
    }
    for (command, wanted, unwanted) in [
        ("shutdown-manager", &["--check-delay", "--no-restore", "--log-format"][..], "--watch"),
        ("shutdown", &["--check-delay", "--drain-timeout", "--control-socket"], "--no-restore"),
        ("status", &["--watch", "--json", "--control-socket", "--help"], "--check-delay"),
    ] {
        let flags = flags(&help(command));
        for flag in wanted {
            assert!(flags.iter().any(|name| name == flag), "{command}: no {flag} in {flags:?}");
        }
        assert!(!flags.iter().any(|name| name == unwanted), "{command}: {unwanted} in {flags:?}");
    }
}

#[test]
fn every_option_of_the_help_is_in_the_readme() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let Ok(readme) = fs::read_to_string(&path) else {
        println!("SKIPPED: there is no {}", path.display());
        return;
    };
    // `--check-delay` must not be found in `--check-delay-x`.
    let names = |flag: &str| {
        readme.match_indices(flag).any(|(at, _)| {
            let next = readme[at + flag.len()..].chars().next();
            next.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '-')
        })
    };
    assert!(names("shutdown-manager") && !names("--no-such-option"));
    let mut missing = Vec::new();
    for command in COMMANDS {
        let flags = flags(&help(command));
        assert!(flags.len() > 2, "{command}: {flags:?}");
        missing.extend(flags.into_iter().filter(|flag| flag != "--help" && !names(flag)));
    }
    missing.sort();
    missing.dedup();
    assert!(missing.is_empty(), "not in the README: {missing:?}");
}

/// Stops a sidecar, and returns its output.
fn output_of(sidecar: &mut Sidecar) -> Exit {
    sidecar.finish();
    sidecar.wait()
}

#[test]
fn the_log_has_the_format_that_is_asked_for() {
    let dir = temp_dir("command-line");
    let admin = FakeAdmin::unix();
    for (n, (first, last, json)) in [
        (&["--log-format=json", "envoy", "shutdown-manager"][..], &[][..], true),
        (&["--log-format", "json", "shutdown-manager"], &[], true),
        (&["envoy", "--log-format=json", "shutdown-manager"], &[], true),
        (&["envoy", "shutdown-manager"], &["--log-format=json"], true),
        (&["--log-format=text", "envoy", "shutdown-manager"], &[], false),
        (&["shutdown-manager"], &[], false),
    ]
    .into_iter()
    .enumerate()
    {
        let socket = dir.path().join(n.to_string());
        let control = format!("--control-socket={}", socket.display());
        let address = format!("--admin-address={}", admin.admin_address());
        let args = [first, &[&control, &address, "--check-delay=0"], last].concat();
        let mut sidecar = run(&args);
        sidecar.wait_log(STARTED);
        assert_exits(&mut run(&["envoy", "shutdown", &control]), 0, "drained");
        sidecar.wait_log(outcome("drained"));
        let log = sidecar.lines();
        assert!(log.len() > 3, "{log:?}");
        for line in &log {
            let is_json = line.starts_with("{\"time\":\"") && line.ends_with('}');
            let is_text = line.starts_with("time=") && line.contains(" level=");
            assert_eq!((is_json, is_text), (json, !json), "{args:?}: {line}");
        }
        sidecar.kill();
    }
}

#[test]
fn of_an_option_that_is_given_twice_the_last_one_applies() {
    let admin = FakeAdmin::unix();
    let twice = ["--check-interval=9s", "--check-interval=70ms"];
    let sidecar = Sidecar::builder().beside(&admin).args(twice).start();
    sidecar.wait_log(logged(STARTED).with("check_interval", "70ms"));
    let mut hook =
        sidecar.hook(&["--check-delay=1h", "--exclude=a", "--check-delay=0", "--exclude=b"]);
    assert_exits(&mut hook, 0, "drained");
    let drain = logged(DRAIN_STARTED).with("check_delay", "0s");
    sidecar.wait_log(drain.with("exclude", "a").with("exclude", "b"));
}

#[test]
fn admin_port_is_ignored_with_a_warning() {
    let admin = FakeAdmin::unix();
    let mut sidecar = Sidecar::builder().beside(&admin).arg("--admin-port=9001").start();
    let mut hook = sidecar.hook(&["--admin-port", "9001"]);
    assert_exits(&mut hook, 0, "drained");
    let warned = hook.wait().output;
    assert!(warned.contains("--admin-port is ignored"), "{warned}");
    let log = output_of(&mut sidecar).output;
    let ignored = logged(OPTION_IGNORED).with("level", "warn").with("option", "--admin-port");
    assert_eq!(sidecar.times_logged(ignored), 1, "{log}");
}

#[test]
fn the_output_need_not_be_read() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let control = format!("--control-socket={}", sidecar.control_socket().display());
    // In the first, the reader's end is closed before the program writes.
    let scripts = [
        "{ trap '' PIPE; while printf . 2>&-; do :; done; \"$@\"; echo \"code $?\" >&2; } | :",
        "\"$@\" >&-; echo \"code $?\"",
        "\"$@\" >/dev/full; echo \"code $?\"",
    ];
    let status = ["status", control.as_str()];
    let json = ["status", "--json", control.as_str()];
    for args in [&["--help"][..], &["--version"], &["shutdown", "--help"], &status, &json] {
        for script in scripts {
            let exit = run_under(&["sh", "-c", script, "sh"], args).wait();
            assert_eq!(exit.output, "code 0", "{args:?}, {script}");
        }
    }
}

#[test]
fn a_hook_whose_output_is_not_read_drains() {
    for script in [
        "\"$@\" 2>&- >&-; echo \"code $?\"",
        "\"$@\" 2>/dev/full; echo \"code $?\"",
        "{ { trap '' PIPE; while printf . 2>&-; do :; done; \"$@\" 2>&1; echo \"code $?\" >&3; } | :; } 3>&1",
    ] {
        let admin = FakeAdmin::unix();
        let sidecar = Sidecar::beside(&admin);
        let control = format!("--control-socket={}", sidecar.control_socket().display());
        let exit = run_under(&["sh", "-c", script, "sh"], &["shutdown", &control]).wait();
        assert_eq!(exit.output, "code 0", "{script}");
        wait_status(&sidecar, |status| status.outcome() == Some("drained"));
    }
}

#[test]
fn a_hook_whose_warning_cannot_be_written_drains() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::beside(&admin);
    let control = format!("--control-socket={}", sidecar.control_socket().display());
    let script = "\"$@\" 2>/dev/full; echo \"code $?\"";
    for (arg, code) in [("--admin-port=9001", "code 0"), ("--chek-delay=1s", "code 2")] {
        let exit = run_under(&["sh", "-c", script, "sh"], &["shutdown", arg, &control]).wait();
        assert_eq!(exit.output, code);
        assert!(sidecar.status().outcome() == Some("drained"));
    }
    sidecar.wait_log(HOOK_CALLED_WRONGLY);
}

#[test]
fn an_exit_code_does_not_depend_on_whether_the_reason_is_read() {
    let script = "\"$@\" >/dev/full 2>&1; echo \"code $?\"";
    for (args, code) in [
        (&["shutdown-manager", "--check-delay=1"][..], 2),
        (&["bootstrap"], 2),
        (&["status", "--control-socket=/nowhere/at/all.sock"], 3),
        (&["shutdown-manager", "--control-socket=/nowhere/at/all.sock"], 1),
    ] {
        let exit = run_under(&["sh", "-c", script, "sh"], args).wait();
        assert_eq!(exit.output, format!("code {code}"), "{args:?}");
    }
}
