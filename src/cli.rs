//! The command line: arguments in, a [`Command`] out, without a look at the environment. One
//! table of flags serves the parser and the help.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser};

use crate::address::{self, ServeAt};
use crate::duration;
use crate::logger::Format;
use crate::options::{DrainOption, ON, Overrides, once};

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
    /// Options of a drain, which a hook's override.
    pub overrides: Overrides,
    /// `--serve-address` and `--serve-port`
    pub serve: ServeAt,
    /// `--start-timeout`
    pub start_timeout: Duration,
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
}

const DRAINS: &[On] = &[On::Manager, On::Shutdown];
const EVERYWHERE: &[On] = &[On::Manager, On::Shutdown, On::Status];

const fn drain(option: DrainOption, value: &'static str, help: &'static str) -> Flag {
    Flag {
        name: option.name(),
        value: Some(value),
        on: DRAINS,
        effect: Effect::Drain(option),
        help,
    }
}

const LOG_FORMAT: Flag = Flag {
    name: "log-format",
    value: Some("FORMAT"),
    on: DRAINS,
    effect: Effect::LogFormat,
    help: "the sidecar's log on stderr: text (logfmt) or json; no effect on a hook [text]",
};

const FLAGS: &[Flag] = &[
    drain(
        DrainOption::CheckInterval,
        "DURATION",
        "time between two polls of Envoy for open connections [5s]",
    ),
    drain(
        DrainOption::CheckDelay,
        "DURATION",
        "time to wait, after failing health checks, before the first poll for open connections [60s]",
    ),
    drain(
        DrainOption::MinOpenConnections,
        "NUMBER",
        "the drain is done at this many open connections or fewer [0]",
    ),
    drain(DrainOption::DrainDelay, "DURATION", "time to wait before failing health checks [0s]"),
    drain(
        DrainOption::DrainTimeout,
        "DURATION",
        "give up waiting this long after the start [none]",
    ),
    Flag {
        name: DrainOption::RequireEnvoyHook.name(),
        value: None,
        on: DRAINS,
        effect: Effect::Drain(DrainOption::RequireEnvoyHook),
        help: "drain only if Envoy's own hook comes to /shutdown within 3s of this one; else end \
               with 0 and leave Envoy alone",
    },
    drain(
        DrainOption::Exclude,
        "NAME",
        "do not count this listener or HTTP stat prefix: its exact name in Envoy's stats; may be repeated",
    ),
    drain(
        DrainOption::AdminAddress,
        "ADDRESS",
        "Envoy's admin interface: a path, unix:PATH, HOST:PORT or [IPV6]:PORT [/admin/admin.sock]",
    ),
    Flag {
        name: "admin-port",
        value: Some("PORT"),
        on: DRAINS,
        effect: Effect::AdminPort,
        help: "ignored, as Contour does; use --admin-address",
    },
    drain(
        DrainOption::ReadyFile,
        "PATH",
        "also create this file when drained; a stale one is removed at the start [none]",
    ),
    Flag {
        name: "serve-port",
        value: Some("PORT"),
        on: DRAINS,
        effect: Effect::ServePort,
        help: "the public port; 0 is any that is free; no effect on a hook [8090]",
    },
    Flag {
        name: "serve-address",
        value: Some("IP"),
        on: &[On::Manager],
        effect: Effect::ServeAddress,
        help: "the address of the public port; 127.0.0.1 for a pod on the host's network [all of \
               IPv6 and IPv4]",
    },
    Flag {
        name: "start-timeout",
        value: Some("DURATION"),
        on: &[On::Manager],
        effect: Effect::StartTimeout,
        help: "let a waiting /shutdown go with 503 when no drain has begun within this time [15s]",
    },
    Flag {
        name: "control-socket",
        value: Some("PATH"),
        on: EVERYWHERE,
        effect: Effect::ControlSocket,
        help: "the private socket between hook and sidecar [shutdown-manager.sock beside the admin \
               socket, else in /dev/shm]",
    },
    Flag {
        name: "no-restore",
        value: None,
        on: &[On::Manager],
        effect: Effect::NoRestore,
        help: "do not put back in service an Envoy that is found out of service at the start",
    },
    LOG_FORMAT,
    Flag {
        name: "watch",
        value: None,
        on: &[On::Status],
        effect: Effect::Watch,
        help: "show it again whenever it changes",
    },
    Flag {
        name: "json",
        value: None,
        on: &[On::Status],
        effect: Effect::Json,
        help: "show it as JSON",
    },
];

const NAME: &str = "envoy-shutdown-manager";

const START_TIMEOUT: Duration = Duration::from_secs(15);

/// The kubelet starts both hooks at about the same time, either first.
const SHORTEST_START_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything that any command can be given.
#[derive(Default)]
struct Given {
    overrides: Overrides,
    serve_port: Option<u16>,
    serve_address: Option<String>,
    start_timeout: Option<Duration>,
    control_socket: Option<PathBuf>,
    log_format: Option<Format>,
    no_restore: bool,
    watch: bool,
    json: bool,
    ignored: Vec<&'static str>,
}

/// Reads the arguments, without the program's name.
///
/// # Errors
/// A sentence for stderr, when they are not of the grammar; the exit code is then 2.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = Parser::from_args(args);
    let mut given = Given::default();
    let Some(on) = command(&mut parser, &mut given)? else {
        return Ok(Command::Print(overview()));
    };
    let on = match on {
        First::Command(on) => on,
        First::Print(text) => return Ok(Command::Print(text)),
    };
    let see = format!("see {NAME} {} --help", on.name());
    loop {
        match parser.next().map_err(|error| format!("{error}; {see}"))? {
            None => break,
            Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Command::Print(help(on))),
            Some(Arg::Long(name)) => {
                let flag = flag(name, on)
                    .ok_or_else(|| format!("{} has no option --{name}; {see}", on.name()))?;
                apply(flag, &mut parser, &mut given)?;
            }
            Some(other) => return Err(format!("{}; {see}", other.unexpected())),
        }
    }
    let Given { overrides, control_socket, ignored, .. } = given;
    Ok(match on {
        On::Manager => Command::Manager(ManagerArgs {
            overrides,
            serve: ServeAt {
                address: given.serve_address,
                port: given.serve_port.unwrap_or(ServeAt::default().port),
            },
            start_timeout: given.start_timeout.unwrap_or(START_TIMEOUT),
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
    let see = format!("see {NAME} --help");
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
                Some("bootstrap") => {
                    return Err(
                        "this image is for the container shutdown-manager only: it has no \
                                bootstrap, which Contour's own image has"
                            .to_owned(),
                    );
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
        "{NAME} {}\n\
         Drains Envoy before Kubernetes ends its pod.\n\n\
         Usage:\n\
         \x20 {NAME} [envoy] shutdown-manager [OPTIONS]   the sidecar: drains when told to\n\
         \x20 {NAME} [envoy] shutdown [OPTIONS]           the preStop hook: starts the drain, blocks until it ends\n\
         \x20 {NAME} status [--watch] [--json]            where the drain stands\n\
         \x20 {NAME} --help | --version                   and --help after each command\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn help(on: On) -> String {
    let envoy = if on == On::Status { "" } else { "[envoy] " };
    let mut text =
        format!("Usage: {NAME} {envoy}{} [OPTIONS]\n\n{}\nOptions:\n", on.name(), on.about());
    for flag in FLAGS.iter().filter(|flag| flag.on.contains(&on)) {
        let left = match flag.value {
            Some(value) => format!("--{}={value}", flag.name),
            None => format!("--{}", flag.name),
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {left}\n      {}", flag.help);
    }
    text + "  --help\n      this text\n"
}

#[cfg(test)]
mod tests;
