use std::time::Duration;

use super::flags::FLAGS;
use super::*;
use crate::cli::options::{DrainOption, Options};

fn parse_line(line: &str) -> Result<Command, String> {
    parse_as(Flavor::Contour, line)
}

fn parse_as(name: Flavor, line: &str) -> Result<Command, String> {
    parse(name, line.split_whitespace().map(OsString::from))
}

fn manager(line: &str) -> SidecarArgs {
    match parse_line(line) {
        Ok(Command::Sidecar(args)) => args,
        other => panic!("{line}: {other:?}"),
    }
}

fn hook(line: &str) -> ShutdownArgs {
    match parse_line(line) {
        Ok(Command::Shutdown(args)) => args,
        other => panic!("{line}: {other:?}"),
    }
}

fn printed(line: &str) -> String {
    match parse_line(line) {
        Ok(Command::Print(text)) => text,
        other => panic!("{line}: {other:?}"),
    }
}

fn manager_defaults() -> SidecarArgs {
    SidecarArgs {
        name: Flavor::Contour,
        overrides: Overrides::default(),
        serve: ServeAt { address: None, port: 8090 },
        start_timeout: Duration::from_secs(15),
        ready_timeout: None,
        control_socket: None,
        no_restore: false,
        log_format: Format::Text,
        ignored: Vec::new(),
    }
}

const ALL: [On; 3] = [On::Sidecar, On::Shutdown, On::Status];

#[test]
fn contours_own_lines_are_taken() {
    assert_eq!(manager("envoy shutdown-manager"), manager_defaults());
    assert_eq!(hook("envoy shutdown"), ShutdownArgs::default());
    let args = hook(
        "envoy shutdown --check-interval=10s --check-delay 30s --drain-delay=1m \
         --min-open-connections=2 --admin-port=9001 --admin-address=/admin/admin.sock \
         --ready-file=/admin/ok",
    );
    assert_eq!(args.overrides.check_interval, Some(Duration::from_secs(10)));
    assert_eq!(args.overrides.check_delay, Some(Duration::from_secs(30)));
    assert_eq!(args.overrides.drain_delay, Some(Duration::from_secs(60)));
    assert_eq!(args.overrides.min_open_connections, Some(2));
    assert_eq!(args.overrides.ready_file, Some("/admin/ok".into()));
    assert_eq!(args.ignored, ["admin-port"]);
    assert_eq!(manager("--log-format=json envoy shutdown-manager").log_format, Format::Json);
    assert_eq!(manager("envoy --log-format json shutdown-manager").log_format, Format::Json);
    hook("--log-format=json envoy shutdown");
}

#[test]
fn envoy_gateways_own_lines_are_taken() {
    let args = match parse_as(Flavor::EnvoyGateway, "envoy shutdown-manager --ready-timeout=70s") {
        Ok(Command::Sidecar(args)) => args,
        other => panic!("{other:?}"),
    };
    assert_eq!((args.name, args.overrides), (Flavor::EnvoyGateway, Overrides::default()));
    assert_eq!((args.serve.port, args.ready_timeout), (19002, Some(Duration::from_secs(70))));
    let Ok(Command::Sidecar(args)) = parse_as(Flavor::EnvoyGateway, "envoy shutdown-manager")
    else {
        panic!("no manager");
    };
    assert_eq!(args.ready_timeout, Some(Duration::from_secs(610)));
    let line = "envoy shutdown --drain-timeout=60s --min-drain-duration=15s \
                --exit-at-connections=2 --health-check-failure-delay=5s";
    for name in [Flavor::Contour, Flavor::EnvoyGateway] {
        let Ok(Command::Shutdown(args)) = parse_as(name, line) else { panic!("no hook") };
        assert_eq!(args.overrides.drain_timeout, Some(Duration::from_secs(60)));
        assert_eq!(args.overrides.min_drain_duration, Some(Duration::from_secs(15)));
        assert_eq!(args.overrides.min_open_connections, Some(2));
        assert_eq!(args.overrides.health_check_failure_delay, Some(Duration::from_secs(5)));
        assert!(!args.overrides.drain_listeners);
        let Ok(Command::Shutdown(args)) = parse_as(name, "envoy shutdown") else {
            panic!("no hook")
        };
        assert_eq!(args, ShutdownArgs::default(), "its defaults are the sidecar's");
    }
}

#[test]
fn the_word_envoy_may_be_left_out() {
    assert_eq!(manager("shutdown-manager"), manager_defaults());
    assert_eq!(hook("shutdown"), ShutdownArgs::default());
    assert!(parse_line("envoy envoy shutdown").is_err());
}

#[test]
fn our_own_options_are_taken() {
    let args = manager(
        "shutdown-manager --no-restore --control-socket=/x --exclude a --exclude=b \
         --serve-port=19002 --serve-address 127.0.0.1 --start-timeout=1m --require-envoy-hook",
    );
    assert_eq!(args.serve, ServeAt { address: Some("127.0.0.1".to_owned()), port: 19002 });
    assert_eq!(args.start_timeout, Duration::from_secs(60));
    let shortest = manager("shutdown-manager --start-timeout=1s --log-format=text");
    assert_eq!(
        shortest,
        SidecarArgs { start_timeout: Duration::from_secs(1), ..manager_defaults() }
    );
    assert!(args.overrides.require_envoy_hook);
    for any in ["[::]", "::"] {
        let args = manager(&format!("shutdown-manager --serve-address={any}"));
        assert_eq!(args.serve.address.as_deref(), Some(any));
    }
    assert_eq!(hook("shutdown --serve-port=1"), ShutdownArgs::default(), "it has no use for it");
    assert!(args.no_restore);
    assert_eq!(args.control_socket, Some("/x".into()));
    assert_eq!(args.overrides.exclude, ["a", "b"]);
    assert_eq!(
        parse_line("status --watch --json --control-socket /x"),
        Ok(Command::Status(StatusArgs {
            control_socket: Some("/x".into()),
            watch: true,
            json: true
        }))
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
        ("shutdown now", "unexpected argument \"now\""),
        ("shutdown --check-delay", "--check-delay needs a value: --check-delay=DURATION"),
        ("shutdown --check-delay --exclude a", "--check-delay needs a value"),
        ("shutdown --check-delay=", "--check-delay: \"\" is not a duration"),
        ("shutdown --check-delay=5", "--check-delay: \"5\" is without a unit"),
        ("shutdown --check-delay=1s --check-delay=1s", "--check-delay: is given twice"),
        ("shutdown --check-interval 0s", "--check-interval: \"0s\" is shorter than 10ms"),
        ("shutdown --min-open-connections=-1", "--min-open-connections: \"-1\" is not a number"),
        ("shutdown --admin-address=9001", "--admin-address: \"9001\" is neither a path"),
        ("shutdown-manager --serve-port=65536", "--serve-port: \"65536\" is not a port"),
        ("shutdown-manager --serve-port=-1", "--serve-port: \"-1\" is not a port"),
        ("shutdown --serve-port=x", "--serve-port: \"x\" is not a port"),
        ("shutdown-manager --serve-address=localhost", "--serve-address: \"localhost\" is not an"),
        ("shutdown --serve-address=::1", "shutdown has no option --serve-address"),
        ("shutdown-manager --start-timeout=999ms", "--start-timeout: \"999ms\" is shorter than 1s"),
        ("shutdown-manager --require-envoy-hook=on", "unexpected argument for option"),
        ("shutdown-manager --log-format=xml", "--log-format: \"xml\" is neither text nor json"),
        ("shutdown-manager --control-socket=", "--control-socket: \"\" is an empty path"),
        (
            "shutdown-manager --control-socket=/a --control-socket=/b",
            "--control-socket: is given twice",
        ),
        ("status --json=yes", "unexpected argument for option '--json': \"yes\""),
        ("bootstrap /config/envoy.json", "this image is for the container shutdown-manager only"),
        ("server", "this image is for the container shutdown-manager only: it has no server"),
    ] {
        let error = parse_line(line).unwrap_err();
        assert!(error.starts_with(sentence), "{line}: {error}");
        assert!(!error.contains('\n'), "{line}: {error}");
    }
    let latin = std::os::unix::ffi::OsStringExt::from_vec(b"--exclude=\xff".to_vec());
    let error = parse(Flavor::Contour, ["shutdown".into(), latin]).unwrap_err();
    assert_eq!(error, "--exclude: the value is not UTF-8");
}

#[test]
fn a_value_that_looks_like_a_flag_is_taken_when_it_is_attached() {
    assert_eq!(hook("shutdown --exclude=--odd").overrides.exclude, ["--odd"]);
}

#[test]
fn no_flag_is_there_twice_and_every_one_is_in_its_help() {
    for (on, start) in ALL.into_iter().zip([
        "[envoy] shutdown-manager [OPTIONS]\n\nThe sidecar: ",
        "[envoy] shutdown [OPTIONS]\n\nThe preStop hook: ",
        "status [OPTIONS]\n\nShows where the drain stands. ",
    ]) {
        let text = help(on, Flavor::Contour);
        assert!(text.starts_with(&format!("Usage: {PROGRAM} {start}")), "{text}");
        let flags: Vec<&Flag> = FLAGS.iter().filter(|flag| flag.on.contains(&on)).collect();
        for (index, flag) in flags.iter().enumerate() {
            assert!(flags[..index].iter().all(|other| other.name != flag.name), "{}", flag.name);
            assert!(text.contains(&format!("  --{}", flag.name)), "{}", flag.name);
            assert!(!flag.help.is_empty() && text.contains(flag.help), "{}", flag.name);
        }
        for line in ["--help", "-h", "--check-delay=1s --help"] {
            if on != On::Status || !line.contains("delay") {
                assert_eq!(printed(&format!("{} {line}", on.name())), text);
            }
        }
        assert!(overview().contains(on.name()));
    }
}

#[test]
fn every_option_of_a_drain_is_a_flag_of_both() {
    for option in DrainOption::ALL {
        for on in [On::Sidecar, On::Shutdown] {
            assert!(flag(option.name(), on).is_some(), "{}", option.name());
        }
    }
}

#[test]
fn help_shows_the_defaults_that_hold() {
    for name in [Flavor::Contour, Flavor::EnvoyGateway] {
        let text = help(On::Sidecar, name);
        let Ok(Command::Print(printed)) = parse_as(name, "shutdown-manager --help") else {
            panic!("no help")
        };
        assert_eq!(printed, text);
        let shown = |option: &str| {
            let (_, rest) = text.split_once(&format!("  --{option}")).expect("the option");
            let help = rest.lines().nth(1).expect("its help");
            let (_, default) = help.rsplit_once(" [").expect("a default");
            default.strip_suffix(']').expect("its end").to_owned()
        };
        // What it says is what it takes for the same: the defaults, said once more, change nothing.
        let options = Options::of(name);
        let mut said = Overrides::default();
        for option in [
            DrainOption::CheckInterval,
            DrainOption::CheckDelay,
            DrainOption::MinOpenConnections,
            DrainOption::DrainDelay,
            DrainOption::HealthCheckFailureDelay,
            DrainOption::MinDrainDuration,
            DrainOption::AdminAddress,
        ] {
            said.set(option, &shown(option.name())).unwrap();
        }
        assert_eq!(options.with(&said), options);
        assert_eq!(said.pairs().len(), 7);
        let timeout = options.drain_timeout.map_or("none".to_owned(), duration::format);
        assert_eq!(duration::parse(&shown("drain-timeout")).ok(), duration::parse(&timeout).ok());
        let Ok(Command::Sidecar(args)) = parse_as(name, "shutdown-manager") else {
            panic!("no manager")
        };
        assert_eq!(shown("serve-port"), args.serve.port.to_string());
        assert_eq!(duration::parse(&shown("start-timeout")), Ok(args.start_timeout));
        assert_eq!(duration::parse(&shown("ready-timeout")).ok(), args.ready_timeout);
    }
}
