//! The table of the command line's options: what each is called, which commands take it, what it
//! does.
//!
//! A new option of a drain is five lines: its row here, its field in `Options` with its default
//! there, and its arm in `Options::set` and in `Options::get`.

use std::time::Duration;

use super::address::{ServeAt, control_socket_path};
use super::options::at_least;
use super::{Args, LogFormat, duration};

/// A command.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Subcommand {
    Sidecar,
    Shutdown,
    Status,
}

impl Subcommand {
    pub const ALL: [Self; 3] = [Self::Sidecar, Self::Shutdown, Self::Status];

    /// Its word on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "shutdown-manager",
            Self::Shutdown => "shutdown",
            Self::Status => "status",
        }
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
    /// It has a value that is not a drain's.
    Value {
        /// Parses a value and stores it; the error is a clause that fits behind "is".
        set: fn(&mut Args, &str) -> Result<(), &'static str>,
        /// The default for the help; empty: none is shown.
        default: fn(&Args) -> String,
    },
}

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

const fn value(
    name: &'static str,
    placeholder: &'static str,
    commands: &'static [Subcommand],
    help: &'static str,
    set: fn(&mut Args, &str) -> Result<(), &'static str>,
    default: fn(&Args) -> String,
) -> Flag {
    Flag { name, placeholder, commands, help, effect: Effect::Value { set, default } }
}

const fn switch(
    name: &'static str,
    commands: &'static [Subcommand],
    help: &'static str,
    set: fn(&mut Args) -> &mut bool,
) -> Flag {
    Flag { name, placeholder: "", commands, help, effect: Effect::Switch(set) }
}

const OTHER_FLAGS: &[Flag] = &[
    Flag {
        name: "exit-at-connections",
        placeholder: "NUMBER",
        commands: DRAINS,
        help: "another name of --min-open-connections",
        effect: Effect::Drain(DrainOption::MinOpenConnections),
    },
    value(
        "admin-port",
        "PORT",
        DRAINS,
        "ignored, as Contour does; use --admin-address",
        |args, _| {
            args.sidecar.ignored.push("admin-port");
            Ok(())
        },
        |_| String::new(),
    ),
    value(
        "serve-port",
        "PORT",
        DRAINS,
        "the public port; 0 is any that is free; no effect on a hook",
        |args, text| {
            let port = text.parse().map_err(|_| "not a port, 0 to 65535");
            port.map(|port| args.sidecar.serve.port = port)
        },
        |args| args.sidecar.serve.port.to_string(),
    ),
    value(
        "serve-address",
        "IP",
        SIDECAR,
        "the address of the public port; 127.0.0.1 for a pod on the host's network",
        |args, text| {
            ServeAt::parse(text).map(|_| args.sidecar.serve.address = Some(text.to_owned()))
        },
        |_| "all of IPv6 and IPv4".to_owned(),
    ),
    value(
        "start-timeout",
        "DURATION",
        SIDECAR,
        "answer a waiting /shutdown with 503 when no drain has started within this time",
        |args, text| {
            let time = at_least(MIN_START_TIMEOUT, text, "shorter than 1s");
            time.map(|time| args.sidecar.start_timeout = time)
        },
        |args| duration::format(args.sidecar.start_timeout),
    ),
    value(
        "ready-timeout",
        "DURATION",
        SIDECAR,
        "answer a waiting /shutdown with 500 after this time, even while a drain is in progress",
        |args, text| duration::parse(text).map(|time| args.sidecar.ready_timeout = Some(time)),
        |args| args.sidecar.ready_timeout.map_or("none".to_owned(), duration::format),
    ),
    value(
        "control-socket",
        "PATH",
        &Subcommand::ALL,
        "the private socket between hook and sidecar",
        |args, text| control_socket_path(text).map(|path| args.sidecar.control_socket = Some(path)),
        |_| "shutdown-manager.sock beside the admin socket, else in /dev/shm".to_owned(),
    ),
    switch(
        "no-restore",
        SIDECAR,
        "do not restore an Envoy that is out of service when the sidecar starts",
        |args| &mut args.sidecar.no_restore,
    ),
    value(
        LOG_FORMAT,
        "FORMAT",
        DRAINS,
        "the sidecar's log on stderr: text (logfmt) or json; no effect on a hook",
        |args, text| {
            let format = match text {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err("neither text nor json"),
            };
            args.sidecar.log_format = format;
            Ok(())
        },
        |_| "text".to_owned(),
    ),
    switch("watch", STATUS, "show it again whenever it changes", |args| &mut args.watch),
    switch("json", STATUS, "show it as JSON", |args| &mut args.json),
];

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
