//! The command line: arguments in, a [`Command`] out, without a look at the environment. One
//! table of flags serves the parser and the help. Every option is known under every name that the
//! program is started by; defaults differ.

pub mod address;
pub mod drain_request;
pub mod duration;
mod flags;
pub mod options;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser};

use self::address::ServeAt;
use self::flags::{Effect, Flag, LOG_FORMAT, On, PROGRAM, flag, help, overview};
use self::options::{Flavor, ON, Overrides, once};
use crate::observe::log::Format;

/// What the program was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print this and exit with 0.
    Print(String),
    /// Be the sidecar.
    Sidecar(SidecarArgs),
    /// Be the preStop hook.
    Shutdown(ShutdownArgs),
    /// Show where the drain stands.
    Status(StatusArgs),
}

/// The sidecar's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarArgs {
    /// The name that the program was started by.
    pub name: Flavor,
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
pub fn parse(name: Flavor, args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
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
        On::Sidecar => Command::Sidecar(SidecarArgs {
            name,
            overrides,
            serve: ServeAt {
                address: given.serve_address,
                port: given.serve_port.unwrap_or(match name {
                    Flavor::Contour => 8090,
                    Flavor::EnvoyGateway => 19002,
                }),
            },
            start_timeout: given.start_timeout.unwrap_or(START_TIMEOUT),
            ready_timeout: given.ready_timeout.or(match name {
                Flavor::Contour => None,
                Flavor::EnvoyGateway => Some(READY_TIMEOUT),
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

/// Reads up to the command.
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
                Some("shutdown-manager") => return Ok(Some(First::Command(On::Sidecar))),
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

#[cfg(test)]
mod tests;
