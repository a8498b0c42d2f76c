//! What each command takes, and the help that is made of it.

use std::fmt::Write as _;

use crate::cli::options::{DrainOption, Flavor};

/// What the program calls itself.
pub const PROGRAM: &str = "envoy-shutdown-manager";

/// A command.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum On {
    Sidecar,
    Shutdown,
    Status,
}

/// What an option is for.
#[derive(Clone, Copy)]
pub enum Effect {
    Drain(DrainOption),
    ServePort,
    ServeAddress,
    StartTimeout,
    ReadyTimeout,
    ControlSocket,
    NoRestore,
    LogFormat,
    AdminPort,
    Watch,
    Json,
}

/// An option.
pub struct Flag {
    /// Its name, behind `--`.
    pub name: &'static str,
    /// The placeholder of its value, if it takes one.
    pub value: Option<&'static str>,
    /// The commands that take it.
    pub on: &'static [On],
    /// What it is for.
    pub effect: Effect,
    /// What it does, for the help.
    pub help: &'static str,
    /// Its default, for the help, where there is one: by the name of contour, and of envoy-gateway.
    pub default: [&'static str; 2],
}

const DRAINS: &[On] = &[On::Sidecar, On::Shutdown];
const EVERYWHERE: &[On] = &[On::Sidecar, On::Shutdown, On::Status];

const NONE: [&str; 2] = [""; 2];

const fn drain(
    option: DrainOption,
    value: &'static str,
    help: &'static str,
    default: [&'static str; 2],
) -> Flag {
    Flag {
        name: option.name(),
        value: Some(value),
        on: DRAINS,
        effect: Effect::Drain(option),
        help,
        default,
    }
}

const fn switch(option: DrainOption, help: &'static str) -> Flag {
    Flag { value: None, ..drain(option, "", help, NONE) }
}

/// The one that Contour takes before the command, too.
pub const LOG_FORMAT: Flag = Flag {
    name: "log-format",
    value: Some("FORMAT"),
    on: DRAINS,
    effect: Effect::LogFormat,
    help: "the sidecar's log on stderr: text (logfmt) or json; no effect on a hook",
    default: ["text"; 2],
};

/// All of them, in the order of the help.
pub const FLAGS: &[Flag] = &[
    drain(
        DrainOption::CheckInterval,
        "DURATION",
        "time between two polls of Envoy for open connections",
        ["5s", "1s"],
    ),
    drain(
        DrainOption::CheckDelay,
        "DURATION",
        "time to wait, after failing health checks, before the first poll for open connections",
        ["60s", "0s"],
    ),
    drain(
        DrainOption::MinDrainDuration,
        "DURATION",
        "time from the start of the drain before which nothing is polled either",
        ["0s", "10s"],
    ),
    drain(
        DrainOption::MinOpenConnections,
        "NUMBER",
        "the drain is done at this many open connections or fewer",
        ["0"; 2],
    ),
    Flag {
        name: "exit-at-connections",
        help: "another name of --min-open-connections",
        ..drain(DrainOption::MinOpenConnections, "NUMBER", "", ["0"; 2])
    },
    drain(
        DrainOption::DrainDelay,
        "DURATION",
        "time to wait before failing health checks",
        ["0s"; 2],
    ),
    drain(
        DrainOption::HealthCheckFailureDelay,
        "DURATION",
        "tell Envoy's listeners to drain, and wait so long before failing health checks; see \
         --drain-listeners",
        ["0s"; 2],
    ),
    drain(
        DrainOption::DrainTimeout,
        "DURATION",
        "give up waiting this long after the start",
        ["none", "60s"],
    ),
    switch(
        DrainOption::DrainListeners,
        "after failing health checks also tell Envoy's listeners to drain, which reaches HTTP/3 and \
         others that take no notice of health checks. Only while Envoy's own hook waits on \
         /shutdown, since it cannot be taken back: an Envoy that lives on closes its clients' \
         connections until it is restarted",
    ),
    switch(
        DrainOption::RequireEnvoyHook,
        "drain only if Envoy's own hook comes to /shutdown within 3s of this one; else end with 0 \
         and leave Envoy alone",
    ),
    drain(
        DrainOption::Exclude,
        "NAME",
        "do not count this listener or HTTP stat prefix: its exact name in Envoy's stats; may be repeated",
        NONE,
    ),
    drain(
        DrainOption::AdminAddress,
        "ADDRESS",
        "Envoy's admin interface: a path, unix:PATH, HOST:PORT or [IPV6]:PORT",
        ["/admin/admin.sock", "localhost:19000"],
    ),
    Flag {
        name: "admin-port",
        value: Some("PORT"),
        on: DRAINS,
        effect: Effect::AdminPort,
        help: "ignored, as Contour does; use --admin-address",
        default: NONE,
    },
    drain(
        DrainOption::ReadyFile,
        "PATH",
        "also create this file when drained; a stale one is removed at the start",
        ["none"; 2],
    ),
    Flag {
        name: "serve-port",
        value: Some("PORT"),
        on: DRAINS,
        effect: Effect::ServePort,
        help: "the public port; 0 is any that is free; no effect on a hook",
        default: ["8090", "19002"],
    },
    Flag {
        name: "serve-address",
        value: Some("IP"),
        on: &[On::Sidecar],
        effect: Effect::ServeAddress,
        help: "the address of the public port; 127.0.0.1 for a pod on the host's network",
        default: ["all of IPv6 and IPv4"; 2],
    },
    Flag {
        name: "start-timeout",
        value: Some("DURATION"),
        on: &[On::Sidecar],
        effect: Effect::StartTimeout,
        help: "let a waiting /shutdown go with 503 when no drain has begun within this time",
        default: ["15s"; 2],
    },
    Flag {
        name: "ready-timeout",
        value: Some("DURATION"),
        on: &[On::Sidecar],
        effect: Effect::ReadyTimeout,
        help: "let a waiting /shutdown go with 500 after this time, even while a drain goes on",
        default: ["none", "610s"],
    },
    Flag {
        name: "control-socket",
        value: Some("PATH"),
        on: EVERYWHERE,
        effect: Effect::ControlSocket,
        help: "the private socket between hook and sidecar",
        default: [
            "shutdown-manager.sock beside the admin socket, else in /dev/shm",
            "/dev/shm/shutdown-manager.sock, or beside the admin socket",
        ],
    },
    Flag {
        name: "no-restore",
        value: None,
        on: &[On::Sidecar],
        effect: Effect::NoRestore,
        help: "do not put back in service an Envoy that is found out of service at the start",
        default: NONE,
    },
    LOG_FORMAT,
    Flag {
        name: "watch",
        value: None,
        on: &[On::Status],
        effect: Effect::Watch,
        help: "show it again whenever it changes",
        default: NONE,
    },
    Flag {
        name: "json",
        value: None,
        on: &[On::Status],
        effect: Effect::Json,
        help: "show it as JSON",
        default: NONE,
    },
];

/// The option of this name that the command takes.
pub fn flag(name: &str, on: On) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name && flag.on.contains(&on))
}

impl On {
    /// Its word on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "shutdown-manager",
            Self::Shutdown => "shutdown",
            Self::Status => "status",
        }
    }

    const fn about(self) -> &'static str {
        match self {
            Self::Sidecar => {
                "The sidecar: waits beside Envoy and, when its hook tells it to, drains it.\n\
                 Options of a drain hold unless the hook is given others.\n"
            }
            Self::Shutdown => {
                "The preStop hook: starts the drain, or joins the one that goes on, and blocks \
                 until it ends.\n\
                 Options given here override the sidecar's own.\n\n\
                 Exit codes: 0 drained, or Envoy is gone or left alone; 1 gave up with connections open;\n\
                 2 wrong usage; 3 no sidecar could be reached.\n"
            }
            Self::Status => {
                "Shows where the drain stands. Exit codes: 0; 2 wrong usage; 3 no sidecar.\n"
            }
        }
    }
}

/// The help before any command.
pub fn overview() -> String {
    format!(
        "{PROGRAM} {}\n\
         Drains Envoy before Kubernetes ends its pod.\n\n\
         Usage:\n\
         \x20 {PROGRAM} [envoy] shutdown-manager [OPTIONS]   the sidecar: drains when told to\n\
         \x20 {PROGRAM} [envoy] shutdown [OPTIONS]           the preStop hook: starts the drain, blocks until it ends\n\
         \x20 {PROGRAM} status [--watch] [--json]            where the drain stands\n\
         \x20 {PROGRAM} --help | --version                   and --help after each command\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The help of a command, with the defaults of the name that the program is started by.
pub fn help(on: On, name: Flavor) -> String {
    let envoy = if on == On::Status { "" } else { "[envoy] " };
    let mut text =
        format!("Usage: {PROGRAM} {envoy}{} [OPTIONS]\n\n{}\nOptions:\n", on.name(), on.about());
    for flag in FLAGS.iter().filter(|flag| flag.on.contains(&on)) {
        let left = match flag.value {
            Some(value) => format!("--{}={value}", flag.name),
            None => format!("--{}", flag.name),
        };
        // Writing to a String does not fail.
        let default = match flag.default[name as usize] {
            "" => String::new(),
            default => format!(" [{default}]"),
        };
        let _ = writeln!(text, "  {left}\n      {}{default}", flag.help);
    }
    text + "  --help\n      this text\n"
}
