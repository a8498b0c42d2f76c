use std::time::Duration;

use super::drain_request::{DrainRequest, HookRequest, MAX_QUERY, drop_excess, join_errors};
use super::options::DrainOption;
use super::*;
use crate::os::clock::Timestamp;

fn parse_line(line: &str) -> Result<Command, String> {
    parse_as(Flavor::Contour, line)
}

fn parse_as(flavor: Flavor, line: &str) -> Result<Command, String> {
    parse(flavor, line.split_whitespace().map(OsString::from))
}

fn sidecar(line: &str) -> Args {
    match parse_line(line) {
        Ok(Command::Run(Subcommand::Sidecar, args)) => args,
        other => panic!("{line}: {other:?}"),
    }
}

fn hook(line: &str) -> Args {
    match parse_line(line) {
        Ok(Command::Run(Subcommand::Shutdown, args)) => args,
        other => panic!("{line}: {other:?}"),
    }
}

/// The one sentence about a line that is wrong.
fn error_of(command: Result<Command, String>) -> String {
    match command {
        Err(sentence) => sentence,
        Ok(Command::Run(Subcommand::Shutdown, mut args)) if args.errors.len() == 1 => {
            args.errors.remove(0)
        }
        other => panic!("{other:?}"),
    }
}

fn printed(line: &str) -> String {
    match parse_line(line) {
        Ok(Command::Print(text)) => text,
        other => panic!("{line}: {other:?}"),
    }
}

fn defaults() -> Args {
    Args {
        flavor: Flavor::Contour,
        overrides: Overrides::default(),
        serve: ServeAt { address: None, port: 8090 },
        start_timeout: Duration::from_secs(15),
        ready_timeout: None,
        control_socket: None,
        no_restore: false,
        log_format: LogFormat::Text,
        watch: false,
        json: false,
        ignored: Vec::new(),
        errors: Vec::new(),
    }
}

/// The options of a drain that were given.
fn given(overrides: &Overrides) -> Vec<(&str, &str)> {
    overrides.pairs().iter().map(|(option, text)| (option.name(), text.as_str())).collect()
}

#[test]
fn contours_own_lines_are_taken() {
    assert_eq!(sidecar("envoy shutdown-manager"), defaults());
    assert_eq!(hook("envoy shutdown"), defaults());
    let args = hook(
        "envoy shutdown --check-interval=10s --check-delay 30s --drain-delay=1m \
         --min-open-connections=2 --admin-port=9001 --admin-address=/admin/admin.sock \
         --ready-file=/admin/ok",
    );
    assert_eq!(
        given(&args.overrides),
        [
            ("check-interval", "10s"),
            ("check-delay", "30s"),
            ("drain-delay", "1m"),
            ("min-open-connections", "2"),
            ("admin-address", "/admin/admin.sock"),
            ("ready-file", "/admin/ok"),
        ]
    );
    assert_eq!(args.ignored, ["admin-port"]);
    assert_eq!(sidecar("--log-format=json envoy shutdown-manager").log_format, LogFormat::Json);
    assert_eq!(sidecar("envoy --log-format json shutdown-manager").log_format, LogFormat::Json);
    hook("--log-format=json envoy shutdown");
}

#[test]
fn envoy_gateways_own_lines_are_taken() {
    let args = match parse_as(Flavor::EnvoyGateway, "envoy shutdown-manager --ready-timeout=70s") {
        Ok(Command::Run(Subcommand::Sidecar, args)) => args,
        other => panic!("{other:?}"),
    };
    assert_eq!((args.flavor, args.overrides), (Flavor::EnvoyGateway, Overrides::default()));
    assert_eq!((args.serve.port, args.ready_timeout), (19002, Some(Duration::from_secs(70))));
    let Ok(Command::Run(Subcommand::Sidecar, args)) =
        parse_as(Flavor::EnvoyGateway, "envoy shutdown-manager")
    else {
        panic!("no manager");
    };
    assert_eq!(args.ready_timeout, Some(Duration::from_secs(610)));
    let line = "envoy shutdown --drain-timeout=60s --min-drain-duration=15s \
                --exit-at-connections=2 --health-check-failure-delay=5s";
    for flavor in [Flavor::Contour, Flavor::EnvoyGateway] {
        let Ok(Command::Run(Subcommand::Shutdown, args)) = parse_as(flavor, line) else {
            panic!("no hook")
        };
        assert_eq!(
            given(&args.overrides),
            [
                ("drain-timeout", "1m"),
                ("min-drain-duration", "15s"),
                ("min-open-connections", "2"),
                ("health-check-failure-delay", "5s"),
            ]
        );
        let Ok(Command::Run(Subcommand::Shutdown, args)) = parse_as(flavor, "envoy shutdown")
        else {
            panic!("no hook")
        };
        assert_eq!(args, Args::of(flavor), "the sidecar's options hold for its hook");
    }
}

#[test]
fn the_word_envoy_may_be_left_out() {
    assert_eq!(sidecar("shutdown-manager"), defaults());
    assert_eq!(hook("shutdown"), defaults());
    assert!(parse_line("envoy envoy shutdown").is_err());
}

#[test]
fn our_own_options_are_taken() {
    let args = sidecar(
        "shutdown-manager --no-restore --control-socket=/x --exclude a --exclude=b \
         --serve-port=19002 --serve-address 127.0.0.1 --start-timeout=1m --require-envoy-hook",
    );
    assert_eq!(args.serve, ServeAt { address: Some("127.0.0.1".to_owned()), port: 19002 });
    assert_eq!(args.start_timeout, Duration::from_secs(60));
    let shortest = sidecar("shutdown-manager --start-timeout=1s --log-format=text");
    assert_eq!(shortest, Args { start_timeout: Duration::from_secs(1), ..defaults() });
    assert_eq!(
        given(&args.overrides),
        [("exclude", "a"), ("exclude", "b"), ("require-envoy-hook", "true")]
    );
    for any in ["[::]", "::"] {
        let args = sidecar(&format!("shutdown-manager --serve-address={any}"));
        assert_eq!(args.serve.address.as_deref(), Some(any));
    }
    let hooks = hook("shutdown --serve-port=1");
    assert_eq!(hooks.overrides, Overrides::default(), "a drain has no use for it");
    assert!(args.no_restore);
    assert_eq!(args.control_socket, Some("/x".into()));
    assert_eq!(
        parse_line("status --watch --json --control-socket /x"),
        Ok(Command::Run(
            Subcommand::Status,
            Args { control_socket: Some("/x".into()), watch: true, json: true, ..defaults() }
        ))
    );
}

#[test]
fn a_bad_line_is_one_sentence_that_names_what_is_wrong() {
    for (line, sentence) in [
        ("", "a command is missing; see envoy-shutdown-manager --help"),
        ("envoy", "a command is missing"),
        ("drain", "there is no command \"drain\""),
        ("--quick shutdown", "invalid option '--quick', before any command"),
        (
            "shutdown --quick",
            "shutdown has no option --quick; see envoy-shutdown-manager shutdown --help",
        ),
        ("shutdown --watch", "shutdown has no option --watch"),
        ("shutdown --no-restore", "shutdown has no option --no-restore"),
        ("status --check-delay=1s", "status has no option --check-delay"),
        ("shutdown -q", "invalid option '-q'"),
        ("shutdown -qx", "invalid option '-q'"),
        ("shutdown -q 5", "invalid option '-q'"),
        ("shutdown --quick=5", "shutdown has no option --quick"),
        ("shutdown --quick 5", "shutdown has no option --quick"),
        ("shutdown -- --check-delay=1s", "unexpected argument \"--check-delay=1s\""),
        ("shutdown now", "unexpected argument \"now\""),
        ("shutdown --check-delay", "--check-delay needs a value: --check-delay=DURATION"),
        ("shutdown --check-delay --exclude a", "--check-delay needs a value"),
        ("shutdown --check-delay=", "--check-delay: \"\" is not a duration"),
        ("shutdown --check-delay=5", "--check-delay: \"5\" is without a unit"),
        ("shutdown --check-delay=1s --check-delay=1", "--check-delay: \"1\" is without a unit"),
        ("shutdown --check-interval 0s", "--check-interval: \"0s\" is shorter than 10ms"),
        ("shutdown --min-open-connections=-1", "--min-open-connections: \"-1\" is not a number"),
        ("shutdown --admin-address=9001", "--admin-address: \"9001\" is neither a path"),
        ("shutdown-manager --serve-port=65536", "--serve-port: \"65536\" is not a port"),
        ("shutdown-manager --serve-port=-1", "--serve-port: \"-1\" is not a port"),
        ("shutdown --serve-port=x", "--serve-port: \"x\" is not a port"),
        ("shutdown-manager --serve-address=localhost", "--serve-address: \"localhost\" is not an"),
        ("shutdown --serve-address=::1", "shutdown has no option --serve-address"),
        ("shutdown-manager --start-timeout=999ms", "--start-timeout: \"999ms\" is shorter than 1s"),
        ("shutdown-manager --ready-timeout=0s", "--ready-timeout: \"0s\" is shorter than 1s"),
        ("shutdown-manager --require-envoy-hook=on", "--require-envoy-hook takes no value"),
        ("shutdown-manager --log-format=xml", "--log-format: \"xml\" is neither text nor json"),
        ("shutdown-manager --control-socket=", "--control-socket: \"\" is an empty path"),
        (
            "shutdown-manager --require-envoy-hook=no",
            "--require-envoy-hook takes no value but true or false",
        ),
        ("shutdown-manager --no-drain-listeners", "shutdown-manager has no option --no-drain"),
        ("shutdown-manager --min-open-connections=1e1", "--min-open-connections: \"1e1\" is not a"),
        ("shutdown-manager --min-open-connections=0x10", "--min-open-connections: \"0x10\" is not"),
        ("status --json=yes", "--json takes no value"),
        ("bootstrap /config/envoy.json", "this image is for the container shutdown-manager only"),
        ("server", "this image is for the container shutdown-manager only: it has no server"),
    ] {
        let error = error_of(parse_line(line));
        assert!(error.starts_with(sentence), "{line}: {error}");
        assert!(!error.contains('\n'), "{line}: {error}");
    }
    let latin = std::os::unix::ffi::OsStringExt::from_vec(b"--exclude=\xff".to_vec());
    let error = error_of(parse(Flavor::Contour, ["shutdown".into(), latin]));
    assert_eq!(error, "--exclude: the value is not UTF-8");
    let path = |length: usize| format!("--control-socket=/{}", "a".repeat(length - 1));
    for command in Subcommand::ALL.map(Subcommand::name) {
        assert!(parse_line(&format!("{command} {}", path(107))).is_ok());
        let error = error_of(parse_line(&format!("{command} {}", path(108))));
        assert!(error.starts_with("--control-socket: \"/aaa"), "{error}");
        assert!(error.contains("is a path longer than the 107 bytes"), "{error}");
    }
}

#[test]
fn a_hook_has_every_option_that_could_be_read_beside_its_errors() {
    let delay = [("check-delay", "1s")];
    for (line, errors, options) in [
        ("--quick --check-delay=1s", &["shutdown has no option --quick"][..], &delay[..]),
        ("--quick=2 --check-delay=1s", &["shutdown has no option --quick"], &delay),
        ("--quick 2 --check-delay=1s", &["shutdown has no option --quick"], &delay),
        // It has its value, so that the next one is another mistake.
        (
            "--quick=2 now --check-delay=1s",
            &["shutdown has no option --quick", "unexpected argument \"now\""],
            &delay,
        ),
        ("-q --check-delay=1s", &["invalid option '-q'"], &delay),
        ("now --check-delay=1s", &["unexpected argument \"now\""], &delay),
        ("--check-delay=1s now then", &["unexpected argument", "unexpected argument"], &delay),
        ("--drain-delay=1 --check-delay=1s", &["--drain-delay: \"1\""], &delay),
        ("--drain-delay --check-delay=1s", &["--drain-delay needs a value"], &delay),
        ("--check-delay 1s --drain-delay", &["--drain-delay needs a value"], &delay),
        ("--check-delay=1s --check-delay=1", &["--check-delay: \"1\""], &delay),
        ("--drain-listeners=no --check-delay=1s", &["--drain-listeners takes no value"], &delay),
        ("--log-format=xml --check-delay=1s", &["--log-format: \"xml\""], &delay),
        ("--quick --exclude", &["shutdown has no option --quick", "--exclude needs a value"], &[]),
    ] {
        let args = hook(&format!("shutdown {line}"));
        assert_eq!(given(&args.overrides), options, "{line}");
        assert_eq!(args.errors.len(), errors.len(), "{line}: {:?}", args.errors);
        for (error, start) in args.errors.iter().zip(errors) {
            assert!(error.starts_with(start), "{line}: {error}");
        }
    }
    let args = hook("shutdown --quick --control-socket=/x --admin-port=1");
    assert_eq!((args.control_socket, args.ignored), (Some("/x".into()), vec!["admin-port"]));
    let args = hook(&("shutdown".to_owned() + &" now".repeat(100) + " --check-delay=1s"));
    assert_eq!((args.errors.len(), given(&args.overrides)), (MAX_ERRORS, delay.to_vec()));
    let text = help(Subcommand::Shutdown, Flavor::Contour);
    for line in ["--quick --help", "--check-delay=1 -h", "now --help"] {
        assert_eq!(printed(&format!("shutdown {line}")), text, "{line}");
    }
}

#[test]
fn options_that_do_not_fit_into_a_request_are_dropped_from_a_hook_and_kept_by_the_sidecar() {
    let exclude = |length: usize| format!("--exclude={} ", "a".repeat(length));
    let fits = format!("shutdown --check-delay=1s {}", exclude(1000).repeat(12));
    assert_eq!(hook(&fits).errors, Vec::<String>::new());
    let args = hook(&format!("{fits} {} --drain-delay=2s", exclude(1000)));
    let start = "--exclude: beyond the 12288 bytes of options that a hook may have";
    assert!(args.errors.len() == 1 && args.errors[0].starts_with(start), "{:?}", args.errors);
    assert_eq!(args.overrides.pairs().len(), 14);
    assert!(given(&args.overrides).contains(&("drain-delay", "2s")), "it fits");
    let args = hook(&format!("{fits} {} --ready-file=/{}", exclude(1000), "a".repeat(1000)));
    assert!(args.errors.len() == 1 && args.errors[0].starts_with(start), "{:?}", args.errors);
    // A byte that is escaped takes three.
    let escaped = format!("shutdown --exclude={}", "\u{fc}".repeat(2100));
    assert_eq!(hook(&escaped).errors.len(), 1);
    let args = sidecar(&format!("shutdown-manager {}", exclude(1000).repeat(13)));
    assert_eq!(args.overrides.pairs().len(), 13);

    // The longest that a hook sends.
    let expires = Some(Timestamp::from_boot(Duration::from_nanos(u64::MAX)));
    let drain = DrainRequest { overrides: args.overrides, expires };
    let error = join_errors(&vec!["\u{fc} ".repeat(100); MAX_ERRORS]);
    let mut request = HookRequest { drain, error };
    assert_eq!(
        drop_excess(&mut request.drain.overrides).map(|error| error.contains(start)),
        Some(true)
    );
    let query = request.to_query();
    assert!((15_000..=MAX_QUERY).contains(&query.len()), "{}", query.len());
    assert!(HookRequest::from_query(&query) == Ok(request), "{query}");
}

#[test]
fn of_an_option_that_is_given_twice_the_last_one_holds() {
    let args = sidecar(
        "--log-format=json shutdown-manager --check-delay=1s --exclude=a --control-socket=/a \
         --serve-port=1 --serve-address=::1 --start-timeout=5s --ready-timeout=1s --no-restore \
         --check-delay=2s --exclude=b --control-socket=/b --serve-port=2 --serve-address=::2 \
         --start-timeout=6s --ready-timeout=2s --no-restore --log-format=text \
         --min-open-connections=3 --exit-at-connections=4",
    );
    assert_eq!(
        given(&args.overrides),
        [("exclude", "a"), ("check-delay", "2s"), ("exclude", "b"), ("min-open-connections", "4")]
    );
    assert_eq!(
        args,
        Args {
            overrides: args.overrides.clone(),
            control_socket: Some("/b".into()),
            serve: ServeAt { address: Some("::2".to_owned()), port: 2 },
            start_timeout: Duration::from_secs(6),
            ready_timeout: Some(Duration::from_secs(2)),
            no_restore: true,
            ..defaults()
        }
    );
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest_known_one() {
    for (line, sentence) in [
        (
            "shutdown --chek-delay=1s",
            "shutdown has no option --chek-delay; did you mean --check-delay? See \
             envoy-shutdown-manager shutdown --help",
        ),
        (
            "shutdown-manager --no-restor",
            "shutdown-manager has no option --no-restor; did you mean \
             --no-restore? See envoy-shutdown-manager shutdown-manager --help",
        ),
        ("shutdown --serve-adress=::1", "shutdown has no option --serve-adress; see"),
        ("status --hepl", "status has no option --hepl; did you mean --help? See"),
        ("status --watch=1s --wach", "--watch takes no value"),
        ("status --wach", "status has no option --wach; did you mean --watch? See"),
        (
            "shutdown-manage",
            "there is no command \"shutdown-manage\"; did you mean shutdown-manager? See \
             envoy-shutdown-manager --help",
        ),
        ("envoy stauts", "there is no command \"stauts\"; did you mean status? See"),
        ("drain", "there is no command \"drain\"; see envoy-shutdown-manager --help"),
    ] {
        let error = error_of(parse_line(line));
        assert!(error.starts_with(sentence), "{line}: {error}");
    }
}

#[test]
fn a_value_that_looks_like_a_flag_is_taken_when_it_is_attached() {
    assert_eq!(given(&hook("shutdown --exclude=--odd").overrides), [("exclude", "--odd")]);
}

#[test]
fn no_flag_is_there_twice_and_every_one_is_in_its_help() {
    for (command, start) in Subcommand::ALL.into_iter().zip([
        "[envoy] shutdown-manager [OPTIONS]\n\nThe sidecar: ",
        "[envoy] shutdown [OPTIONS]\n\nThe preStop hook: ",
        "status [OPTIONS]\n\nShows the state of the drain. ",
    ]) {
        let text = help(command, Flavor::Contour);
        assert!(text.starts_with(&format!("Usage: {PROGRAM} {start}")), "{text}");
        let flags: Vec<&Flag> = flags(command).collect();
        for (index, flag) in flags.iter().enumerate() {
            assert!(flags[..index].iter().all(|other| other.name != flag.name), "{}", flag.name);
            assert!(text.contains(&format!("  --{}", flag.name)), "{}", flag.name);
            assert!(!flag.help.is_empty() && text.contains(flag.help), "{}", flag.name);
        }
        for line in ["--help", "-h", "--check-delay=1s --help"] {
            if command != Subcommand::Status || !line.contains("delay") {
                assert_eq!(printed(&format!("{} {line}", command.name())), text);
            }
        }
        assert!(overview().contains(command.name()));
    }
}

#[test]
fn every_option_of_a_drain_is_a_flag_of_both() {
    for option in DrainOption::ALL {
        for command in [Subcommand::Sidecar, Subcommand::Shutdown] {
            let mut named = flags(command).filter(|flag| flag.name == option.name());
            let flag = named.next().expect("a flag");
            assert!(matches!(flag.effect, Effect::Drain(of) if of == option), "{}", flag.name);
            assert_eq!(named.count(), 0, "{}", flag.name);
        }
        assert_eq!(DrainOption::ALL[option as usize], option);
    }
}

#[test]
fn the_status_has_no_option_of_a_sidecar_or_a_drain_but_what_leads_to_its_sidecar() {
    let names: Vec<_> = flags(Subcommand::Status).map(|flag| flag.name).collect();
    let taken = ["admin-address", "control-socket", "watch", "json"];
    assert_eq!(names, taken, "others would be taken without effect");
}

#[test]
fn help_shows_the_defaults_that_hold() {
    for flavor in [Flavor::Contour, Flavor::EnvoyGateway] {
        let text = help(Subcommand::Sidecar, flavor);
        let Ok(Command::Print(printed)) = parse_as(flavor, "shutdown-manager --help") else {
            panic!("no help")
        };
        assert_eq!(printed, text);
        let shown = |option: &str| {
            let (_, rest) = text.split_once(&format!("  --{option}")).expect("the option");
            let help = rest.lines().nth(1).expect("its help");
            let default = help.rsplit_once(" [").and_then(|(_, end)| end.strip_suffix(']'));
            default.unwrap_or_default().to_owned()
        };
        // The defaults that it shows, given as options, change nothing.
        let mut line = "shutdown-manager".to_owned();
        let mut without = Vec::new();
        for flag in flags(Subcommand::Sidecar) {
            match shown(flag.name).as_str() {
                default if default.is_empty() || default == "none" || default.contains(' ') => {
                    without.push((flag.name, default.to_owned()));
                }
                default => line += &format!(" --{}={default}", flag.name),
            }
        }
        let Ok(Command::Run(Subcommand::Sidecar, args)) = parse_as(flavor, &line) else {
            panic!("{line}")
        };
        let options = options::Options::of(flavor);
        assert_eq!(options.with(&args.overrides), options);
        assert_eq!(Args { overrides: Overrides::default(), ..args }, Args::of(flavor));
        let gateway = flavor == Flavor::EnvoyGateway;
        assert_eq!(
            without.iter().map(|(name, shown)| (*name, shown.as_str())).collect::<Vec<_>>(),
            [
                (!gateway).then_some(("drain-timeout", "none")),
                Some(("injected-resource", "none")),
                Some(("drain-listeners", "")),
                Some(("require-envoy-hook", "")),
                Some(("exclude", "")),
                Some(("ready-file", "none")),
                Some(("admin-port", "")),
                Some(("serve-address", "all of IPv6 and IPv4")),
                (!gateway).then_some(("ready-timeout", "none")),
                Some((
                    "control-socket",
                    "shutdown-manager.sock beside the admin socket, if there is one, else in /dev/shm"
                )),
                Some(("no-restore", "")),
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
        );
        let Ok(Command::Run(Subcommand::Sidecar, args)) = parse_as(flavor, "shutdown-manager")
        else {
            panic!("no sidecar")
        };
        assert_eq!(shown("serve-port"), args.serve.port.to_string());
        assert_eq!(shown("exit-at-connections"), shown("min-open-connections"));
        assert_eq!(duration::parse(&shown("start-timeout")), Ok(args.start_timeout));
        assert_eq!(duration::parse(&shown("ready-timeout")).ok(), args.ready_timeout);
    }
}

#[test]
fn a_misspelled_hook_is_one_that_was_called_wrongly() {
    let line = "envoy shutdwn --check-delay=3s";
    let Ok(Command::Run(Subcommand::Shutdown, args)) = parse_line(line) else {
        panic!("{line} starts no drain")
    };
    assert_eq!(args.overrides.pairs(), [(DrainOption::CheckDelay, "3s".to_owned())]);
    assert_eq!(args.errors.len(), 1);
    assert!(args.errors[0].contains("\"shutdwn\"; did you mean shutdown?"), "{:?}", args.errors);
    for other in ["envoy shutdown-managr", "envoy statu", "envoy stop"] {
        assert!(parse_line(other).is_err(), "{other}");
    }
}

#[test]
fn a_switch_may_have_the_value_true_or_false() {
    let args = hook("shutdown --drain-listeners=true --require-envoy-hook");
    let switches = [DrainOption::DrainListeners, DrainOption::RequireEnvoyHook];
    assert_eq!(args.overrides.pairs(), switches.map(|switch| (switch, ON.to_owned())));
    let args = hook("shutdown --drain-listeners=false --require-envoy-hook=false");
    assert_eq!(args.overrides.pairs(), switches.map(|switch| (switch, OFF.to_owned())));
    let sidecar = sidecar("shutdown-manager --drain-listeners --require-envoy-hook");
    let own = options::Options::default().with(&sidecar.overrides);
    assert_eq!(own.with(&args.overrides), options::Options::default(), "it stays switched on");
    assert_eq!(
        given(&hook("shutdown --drain-listeners --drain-listeners=false").overrides),
        [("drain-listeners", "false")]
    );
    for (value, on) in [("", true), ("=true", true), ("=false", false)] {
        let args = self::sidecar(&format!("shutdown-manager --no-restore{value}"));
        assert_eq!(args, Args { no_restore: on, ..defaults() });
        let Ok(Command::Run(_, args)) = parse_line(&format!("status --watch{value} --json{value}"))
        else {
            panic!("{value}")
        };
        assert_eq!(args, Args { watch: on, json: on, ..defaults() });
    }
    assert!(!self::sidecar("shutdown-manager --no-restore --no-restore=false").no_restore);
}

#[test]
fn the_version_is_a_command_too() {
    for line in ["version", "--version", "-V"] {
        let Ok(Command::Print(text)) = parse_line(line) else { panic!("{line}") };
        assert_eq!(text, format!("{PROGRAM} {}\n", env!("CARGO_PKG_VERSION")));
    }
}
