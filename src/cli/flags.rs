//! The table of the command line's options: what each is called, which commands take it, what it
//! does.
//!
//! A new option of a drain is five lines: its row here, its field in `Options` with its default
//! there, and its arm in `Options::set` and in `Options::get`.

use std::time::Duration;

use super::address::{ServeAt, control_socket_path};
use super::options::at_least;
use super::{Args, LogFormat, duration};
use crate::labels;

labels! {
    /// A command, with its word on the command line.
    pub enum Subcommand {
        Sidecar = "shutdown-manager",
        Shutdown = "shutdown",
        Status = "status",
    }
}

/// An option of the command line.
pub struct Flag {
    /// Its name, behind `--`.
    pub name: &'static str,
    /// The placeholder of its value; empty for a switch, which takes none.
    pub placeholder: &'static str,
    /// The commands that take it.
    pub commands: &'static [Subcommand],
    pub help: &'static str,
    pub effect: Effect,
}

pub enum Effect {
    /// It is an option of a drain, which `Options` parses and formats.
    Drain(DrainOption),
    /// It turns this on.
    Switch(fn(&mut Args) -> &mut bool),
    /// It has a value that is not a drain's: how it is set, with a clause that fits behind "is" as
    /// the error, and its default for the help; where that is empty, none is shown.
    Value(fn(&mut Args, &str) -> Result<(), &'static str>, fn(&Args) -> String),
}

const EVERYWHERE: &[Subcommand] = &Subcommand::ALL;
const DRAINS: &[Subcommand] = &[Subcommand::Sidecar, Subcommand::Shutdown];
const SIDECAR: &[Subcommand] = &[Subcommand::Sidecar];
const STATUS: &[Subcommand] = &[Subcommand::Status];

/// Minimum of `--start-timeout`: the kubelet starts both hooks at about the same time, either first.
const MIN_START_TIMEOUT: Duration = Duration::from_secs(1);

/// One row for each option of a drain: its variant, name, placeholder and help.
macro_rules! drain_options {
    ($($option:ident $name:literal $placeholder:literal $help:literal)*) => {
        /// The options of a drain, which the sidecar and the hook both take.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DrainOption {
            $(#[doc = concat!("`--", $name, "`")] $option,)*
        }

        impl DrainOption {
            /// All of them, in the order in which help and log show them.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$option),*];
        }

        const DRAIN_FLAGS: &[Flag] = &[$(Flag {
            name: $name,
            placeholder: $placeholder,
            commands: DRAINS,
            help: $help,
            effect: Effect::Drain(DrainOption::$option),
        }),*];
    };
}

drain_options! {
    CheckInterval "check-interval" "DURATION"
        "time between two polls of Envoy for open connections"
    CheckDelay "check-delay" "DURATION"
        "time to wait, after failing health checks, before the first poll for open connections"
    MinDrainDuration "min-drain-duration" "DURATION"
        "time from the start of the drain before which nothing is polled either"
    MinOpenConnections "min-open-connections" "NUMBER"
        "the drain is done at this many open connections or fewer"
    DrainDelay "drain-delay" "DURATION"
        "time to wait before failing health checks"
    HealthCheckFailureDelay "health-check-failure-delay" "DURATION"
        "tell Envoy's listeners to drain, and wait this long before failing health checks; see \
         --drain-listeners"
    DrainTimeout "drain-timeout" "DURATION"
        "give up this long after the start of the drain"
    DrainListeners "drain-listeners" ""
        "after failing health checks also tell Envoy's listeners to drain, which reaches HTTP/3 and \
         other listeners that ignore health checks. Only while Envoy's own hook waits on /shutdown, \
         because only a restart of Envoy undoes it: until then Envoy closes its clients' connections"
    RequireEnvoyHook "require-envoy-hook" ""
        "drain only if Envoy's own hook comes to /shutdown within 3s of this one; else end with 0 \
         and leave Envoy in service"
    Exclude "exclude" "NAME"
        "do not count this listener or HTTP stat prefix: its exact name in Envoy's stats; may be \
         repeated"
    AdminAddress "admin-address" "ADDRESS"
        "Envoy's admin interface: a path, unix:PATH, HOST:PORT or [IPV6]:PORT"
    ReadyFile "ready-file" "PATH"
        "also create this file when drained; one that is left from before is removed at the start"
}

impl DrainOption {
    const fn flag(self) -> &'static Flag {
        &DRAIN_FLAGS[self as usize]
    }

    /// The name on the command line (behind `--`) and in the query.
    pub const fn name(self) -> &'static str {
        self.flag().name
    }

    /// What help and log show where the option has no value; nothing for one that repeats.
    pub const fn unset(self) -> Option<&'static str> {
        match self {
            Self::Exclude => None,
            _ if self.flag().placeholder.is_empty() => Some("off"),
            _ => Some("none"),
        }
    }
}

/// One row for each other option: its name, placeholder, commands and help; then how a value is set
/// and what the help shows as its default, or which switch it turns on.
macro_rules! other_options {
    ($($name:tt $placeholder:literal $commands:tt $help:literal $effect:expr;)*) => {
        const OTHER_FLAGS: &[Flag] = &[$(Flag {
            name: $name,
            placeholder: $placeholder,
            commands: $commands,
            help: $help,
            effect: $effect,
        }),*];
    };
}

other_options! {
    "exit-at-connections" "NUMBER" DRAINS "another name of --min-open-connections"
        Effect::Drain(DrainOption::MinOpenConnections);
    "admin-port" "PORT" DRAINS "ignored, as Contour does; use --admin-address"
        Effect::Value(|args, _| Ok(args.sidecar.ignored.push("admin-port")), |_| String::new());
    "serve-port" "PORT" DRAINS "the public port; 0 is any that is free; no effect on a hook"
        Effect::Value(
            |args, text| {
                let port = text.parse().map_err(|_| "not a port, 0 to 65535");
                port.map(|port| args.sidecar.serve.port = port)
            },
            |args| args.sidecar.serve.port.to_string(),
        );
    "serve-address" "IP" SIDECAR
        "the address of the public port; 127.0.0.1 for a pod on the host's network"
        Effect::Value(
            |args, text| {
                ServeAt::parse(text).map(|_| args.sidecar.serve.address = Some(text.to_owned()))
            },
            |_| "all of IPv6 and IPv4".to_owned(),
        );
    "start-timeout" "DURATION" SIDECAR
        "answer a waiting /shutdown with 503 when no drain has started within this time"
        Effect::Value(
            |args, text| {
                let time = at_least(MIN_START_TIMEOUT, text, "shorter than 1s");
                time.map(|time| args.sidecar.start_timeout = time)
            },
            |args| duration::format(args.sidecar.start_timeout),
        );
    "ready-timeout" "DURATION" SIDECAR
        "answer a waiting /shutdown with 500 after this time, even while a drain is in progress"
        Effect::Value(
            |args, text| duration::parse(text).map(|time| args.sidecar.ready_timeout = Some(time)),
            |args| args.sidecar.ready_timeout.map_or("none".to_owned(), duration::format),
        );
    "control-socket" "PATH" EVERYWHERE "the private socket between hook and sidecar"
        Effect::Value(
            |args, text| {
                control_socket_path(text).map(|path| args.sidecar.control_socket = Some(path))
            },
            |_| "shutdown-manager.sock beside the admin socket, else in /dev/shm".to_owned(),
        );
    "no-restore" "" SIDECAR "do not restore an Envoy that is out of service when the sidecar starts"
        Effect::Switch(|args| &mut args.sidecar.no_restore);
    LOG_FORMAT "FORMAT" DRAINS
        "the sidecar's log on stderr: text (logfmt) or json; no effect on a hook"
        Effect::Value(
            |args, text| {
                let format = LogFormat::from_name(text).ok_or("neither text nor json");
                format.map(|format| args.sidecar.log_format = format)
            },
            |_| LogFormat::default().name().to_owned(),
        );
    "watch" "" STATUS "show it again whenever it changes" Effect::Switch(|args| &mut args.watch);
    "json" "" STATUS "show it as JSON" Effect::Switch(|args| &mut args.json);
}

/// The one that Contour takes before the command, too.
pub const LOG_FORMAT: &str = "log-format";

/// The option of this name that the command takes.
pub fn flag(command: Subcommand, name: &str) -> Option<&'static Flag> {
    flags(command).find(|flag| flag.name == name)
}

/// The options that a command takes, in the order of its help.
pub fn flags(command: Subcommand) -> impl Iterator<Item = &'static Flag> {
    let all = DRAIN_FLAGS.iter().chain(OTHER_FLAGS);
    all.filter(move |flag| flag.commands.contains(&command))
}
