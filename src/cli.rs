//! The command line: arguments in, a [`Command`] out, without a look at the environment. One
//! table of flags serves the parser and the help. Every option is known under every name that the
//! program is started by; defaults differ.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser};

use crate::address::{self, ServeAt};
use crate::duration;
use crate::logger::Format;
use crate::options::{DrainOption, Name, ON, Overrides, once};

/// What the program was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print this and exit with 0.
    Print(String),
    /// Be the sidecar.
    Manager(ManagerArgs),
    /// Be the preStop hook.
    Shutdown(ShutdownArgs),
    /// Show where the drain stands.
    Status(StatusArgs),
}

/// The sidecar's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerArgs {
    /// The name that the program was started by.
    pub name: Name,
    /// Options of a drain, which a hook's override.
    pub overrides: Overrides,
    /// `--serve-address` and `--serve-port`
    pub serve: ServeAt,
    /// `--start-timeout`
    pub start_timeout: Duration,
    /// `--ready-timeout`
    pub ready_timeout: Option<Duration>,
    /// `--control-socket`
    pub control_socket: Option<PathBuf>,
    /// `--no-restore`
    pub no_restore: bool,
    /// `--log-format`
    pub log_format: Format,
    /// Options that were accepted without effect.
    pub ignored: Vec<&'static str>,
}

/// The hook's arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShutdownArgs {
    /// Options of the drain that it starts.
    pub overrides: Overrides,
    /// `--control-socket`
    pub control_socket: Option<PathBuf>,
    /// Options that were accepted without effect.
    pub ignored: Vec<&'static str>,
}

/// The arguments of `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusArgs {
    /// `--control-socket`
    pub control_socket: Option<PathBuf>,
    /// `--watch`
    pub watch: bool,
    /// `--json`
    pub json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    Manager,
    Shutdown,
    Status,
}

#[derive(Clone, Copy)]
enum Effect {
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

struct Flag {
    name: &'static str,
    /// The placeholder of its value, if it takes one.
    value: Option<&'static str>,
    on: &'static [On],
    effect: Effect,
    help: &'static str,
    /// Its default, for the help, where there is one: by the name of contour, and of envoy-gateway.
    default: [&'static str; 2],
}

const DRAINS: &[On] = &[On::Manager, On::Shutdown];
const EVERYWHERE: &[On] = &[On::Manager, On::Shutdown, On::Status];

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

const LOG_FORMAT: Flag = Flag {
    name: "log-format",
    value: Some("FORMAT"),
    on: DRAINS,
    effect: Effect::LogFormat,
    help: "the sidecar's log on stderr: text (logfmt) or json; no effect on a hook",
    default: ["text"; 2],
};

const FLAGS: &[Flag] = &[
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
        on: &[On::Manager],
        effect: Effect::ServeAddress,
        help: "the address of the public port; 127.0.0.1 for a pod on the host's network",
        default: ["all of IPv6 and IPv4"; 2],
    },
    Flag {
        name: "start-timeout",
        value: Some("DURATION"),
        on: &[On::Manager],
        effect: Effect::StartTimeout,
        help: "let a waiting /shutdown go with 503 when no drain has begun within this time",
        default: ["15s"; 2],
    },
    Flag {
        name: "ready-timeout",
        value: Some("DURATION"),
        on: &[On::Manager],
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
        on: &[On::Manager],
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

/// What the program calls itself.
const PROGRAM: &str = "envoy-shutdown-manager";

const START_TIMEOUT: Duration = Duration::from_secs(15);

/// Envoy Gateway's own: longer than any drain of its.
const READY_TIMEOUT: Duration = Duration::from_secs(610);

/// The kubelet starts both hooks at about the same time, either first.
const SHORTEST_START_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything that any command can be given.
#[derive(Default)]
struct Given {
    overrides: Overrides,
    serve_port: Option<u16>,
    serve_address: Option<String>,
    start_timeout: Option<Duration>,
    ready_timeout: Option<Duration>,
    control_socket: Option<PathBuf>,
    log_format: Option<Format>,
    no_restore: bool,
    watch: bool,
    json: bool,
    ignored: Vec<&'static str>,
}

/// Reads the arguments behind the program's name.
///
/// # Errors
/// A sentence for stderr, when they are not of the grammar; the exit code is then 2.
pub fn parse(name: Name, args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = Parser::from_args(args);
    let mut given = Given::default();
    let Some(on) = command(&mut parser, &mut given)? else {
        return Ok(Command::Print(overview()));
    };
    let on = match on {
        First::Command(on) => on,
        First::Print(text) => return Ok(Command::Print(text)),
    };
    let see = format!("see {PROGRAM} {} --help", on.name());
    loop {
        match parser.next().map_err(|error| format!("{error}; {see}"))? {
            None => break,
            Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Command::Print(help(on, name))),
            Some(Arg::Long(option)) => {
                let flag = flag(option, on)
                    .ok_or_else(|| format!("{} has no option --{option}; {see}", on.name()))?;
                apply(flag, &mut parser, &mut given)?;
            }
            Some(other) => return Err(format!("{}; {see}", other.unexpected())),
        }
    }
    let Given { overrides, control_socket, ignored, .. } = given;
    Ok(match on {
        On::Manager => Command::Manager(ManagerArgs {
            name,
            overrides,
            serve: ServeAt {
                address: given.serve_address,
                port: given.serve_port.unwrap_or(match name {
                    Name::Contour => 8090,
                    Name::EnvoyGateway => 19002,
                }),
            },
            start_timeout: given.start_timeout.unwrap_or(START_TIMEOUT),
            ready_timeout: given.ready_timeout.or(match name {
                Name::Contour => None,
                Name::EnvoyGateway => Some(READY_TIMEOUT),
            }),
            control_socket,
            no_restore: given.no_restore,
            log_format: given.log_format.unwrap_or_default(),
            ignored,
        }),
        On::Shutdown => Command::Shutdown(ShutdownArgs { overrides, control_socket, ignored }),
        On::Status => {
            Command::Status(StatusArgs { control_socket, watch: given.watch, json: given.json })
        }
    })
}

enum First {
    Command(On),
    Print(String),
}

/// Reads up to the command. Contour takes `--log-format` before it, too.
fn command(parser: &mut Parser, given: &mut Given) -> Result<Option<First>, String> {
    let see = format!("see {PROGRAM} --help");
    let mut envoy = false;
    loop {
        match parser.next().map_err(|error| format!("{error}; {see}"))? {
            None => return Err(format!("a command is missing; {see}")),
            Some(Arg::Short('h') | Arg::Long("help")) => return Ok(None),
            Some(Arg::Short('V') | Arg::Long("version")) => {
                let version = concat!("envoy-shutdown-manager ", env!("CARGO_PKG_VERSION"), "\n");
                return Ok(Some(First::Print(version.to_owned())));
            }
            Some(Arg::Long(name)) if name == LOG_FORMAT.name => apply(&LOG_FORMAT, parser, given)?,
            Some(Arg::Value(word)) => match word.to_str() {
                Some("envoy") if !envoy => envoy = true,
                Some("shutdown-manager") => return Ok(Some(First::Command(On::Manager))),
                Some("shutdown") => return Ok(Some(First::Command(On::Shutdown))),
                Some("status") => return Ok(Some(First::Command(On::Status))),
                Some(
                    other @ ("bootstrap" | "certgen" | "gateway-provisioner" | "serve" | "server"),
                ) => {
                    return Err(format!(
                        "this image is for the container shutdown-manager only: it has no {other}, \
                         which the image of Contour or Envoy Gateway has"
                    ));
                }
                _ => return Err(format!("there is no command {word:?}; {see}")),
            },
            Some(other) => {
                return Err(format!("{}, before any command; {see}", other.unexpected()));
            }
        }
    }
}

fn flag(name: &str, on: On) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name && flag.on.contains(&on))
}

/// Takes a flag's value and puts it where it belongs. The flag's name is added to an error here
/// and nowhere else.
fn apply(flag: &Flag, parser: &mut Parser, given: &mut Given) -> Result<(), String> {
    let name = flag.name;
    let value = match flag.value {
        None => ON.to_owned(),
        Some(placeholder) => {
            let missing = || format!("--{name} needs a value: --{name}={placeholder}");
            let attached = parser.optional_value();
            let is_attached = attached.is_some();
            let value = match attached {
                Some(value) => value,
                None => parser.value().map_err(|_| missing())?,
            };
            let value =
                value.into_string().map_err(|_| format!("--{name}: the value is not UTF-8"))?;
            // lexopt takes whatever comes next; a flag there means that the value was forgotten.
            if value.starts_with("--") && !is_attached {
                return Err(missing());
            }
            value
        }
    };
    let result =
        match flag.effect {
            Effect::Drain(option) => given.overrides.set(option, &value),
            Effect::ServePort => value
                .parse()
                .map_err(|_| format!("{value:?} is not a port, 0 to 65535"))
                .and_then(|port| once(&mut given.serve_port, port)),
            Effect::ServeAddress => ServeAt::parse(&value)
                .map_err(|reason| format!("{value:?} is {reason}"))
                .and_then(|_| once(&mut given.serve_address, value)),
            Effect::StartTimeout => duration::parse(&value)
                .and_then(|time| {
                    if time < SHORTEST_START_TIMEOUT { Err("shorter than 1s") } else { Ok(time) }
                })
                .map_err(|reason| format!("{value:?} is {reason}"))
                .and_then(|time| once(&mut given.start_timeout, time)),
            Effect::ReadyTimeout => duration::parse(&value)
                .map_err(|reason| format!("{value:?} is {reason}"))
                .and_then(|time| once(&mut given.ready_timeout, time)),
            Effect::ControlSocket => address::socket_path(&value)
                .map_err(|reason| format!("{value:?} is {reason}"))
                .and_then(|path| once(&mut given.control_socket, path)),
            Effect::LogFormat => match value.as_str() {
                "text" => once(&mut given.log_format, Format::Text),
                "json" => once(&mut given.log_format, Format::Json),
                _ => Err(format!("{value:?} is neither text nor json")),
            },
            Effect::AdminPort => {
                given.ignored.push(name);
                Ok(())
            }
            Effect::NoRestore => set(&mut given.no_restore),
            Effect::Watch => set(&mut given.watch),
            Effect::Json => set(&mut given.json),
        };
    result.map_err(|reason| format!("--{name}: {reason}"))
}

fn set(switch: &mut bool) -> Result<(), String> {
    *switch = true;
    Ok(())
}

impl On {
    const fn name(self) -> &'static str {
        match self {
            Self::Manager => "shutdown-manager",
            Self::Shutdown => "shutdown",
            Self::Status => "status",
        }
    }

    const fn about(self) -> &'static str {
        match self {
            Self::Manager => {
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

fn overview() -> String {
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

fn help(on: On, name: Name) -> String {
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

#[cfg(test)]
mod tests;
