//! The command line: arguments in, a [`Command`] out. It is pure: it reads no environment. One table
//! of options serves the parser and the help. Every option is known under every name that the
//! program is started by; defaults differ.

pub mod address;
pub mod drain_request;
pub mod duration;
mod flags;
mod help;
mod nearest;
pub mod options;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser};

use self::address::ServeAt;
use self::flags::{Effect, Flag, LOG_FORMAT, Subcommand, flag, flags};
use self::help::{help, overview};
use self::nearest::nearest;
use self::options::{Flavor, ON, Overrides};
use crate::labels;

/// What the program calls itself.
const PROGRAM: &str = "envoy-shutdown-manager";

/// What the program is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print this and exit with 0.
    Print(String),
    /// Be the sidecar.
    Sidecar(SidecarArgs),
    /// Be the preStop hook.
    Shutdown(ShutdownArgs),
    /// Show the state of the drain.
    Status(StatusArgs),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarArgs {
    pub flavor: Flavor,
    /// Options of a drain, which a hook's override.
    pub overrides: Overrides,
    /// `--serve-address` and `--serve-port`
    pub serve: ServeAt,
    pub start_timeout: Duration,
    pub ready_timeout: Option<Duration>,
    pub control_socket: Option<PathBuf>,
    pub no_restore: bool,
    pub log_format: LogFormat,
    /// Options that were accepted without effect.
    pub ignored: Vec<&'static str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShutdownArgs {
    /// Options of the drain that it starts.
    pub overrides: Overrides,
    pub control_socket: Option<PathBuf>,
    /// Options that were accepted without effect.
    pub ignored: Vec<&'static str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusArgs {
    pub control_socket: Option<PathBuf>,
    pub watch: bool,
    pub json: bool,
}

labels! {
    /// The format of the log's records.
    #[derive(Default)]
    pub enum LogFormat {
        /// logfmt: `time=… level=… msg="…" key=value …`
        #[default]
        Text = "text",
        /// One object a line.
        Json = "json",
    }
}

/// Everything that any command can be given.
struct Args {
    sidecar: SidecarArgs,
    watch: bool,
    json: bool,
}

impl Args {
    /// The defaults of a name.
    fn of(flavor: Flavor) -> Self {
        let (port, ready_timeout) = match flavor {
            Flavor::Contour => (8090, None),
            // Envoy Gateway's own: longer than any of its drains.
            Flavor::EnvoyGateway => (19002, Some(Duration::from_secs(610))),
        };
        let sidecar = SidecarArgs {
            flavor,
            overrides: Overrides::default(),
            serve: ServeAt { address: None, port },
            start_timeout: Duration::from_secs(15),
            ready_timeout,
            control_socket: None,
            no_restore: false,
            log_format: LogFormat::default(),
            ignored: Vec::new(),
        };
        Self { sidecar, watch: false, json: false }
    }

    /// Takes an option's value and stores it. The option's name is added to an error here and
    /// nowhere else.
    fn set(&mut self, flag: &Flag, parser: &mut Parser) -> Result<(), String> {
        let value = match flag.placeholder {
            "" => ON.to_owned(),
            placeholder => value(flag.name, placeholder, parser)?,
        };
        let result = match flag.effect {
            Effect::Drain(option) => self.sidecar.overrides.set(option, &value),
            Effect::Switch(switch) => {
                *switch(self) = true;
                Ok(())
            }
            Effect::Value(set, _) => {
                set(self, &value).map_err(|reason| format!("{value:?} is {reason}"))
            }
        };
        result.map_err(|reason| format!("--{}: {reason}", flag.name))
    }
}

fn value(name: &str, placeholder: &str, parser: &mut Parser) -> Result<String, String> {
    let missing = || format!("--{name} needs a value: --{name}={placeholder}");
    let attached = parser.optional_value();
    let is_attached = attached.is_some();
    let value = attached.map_or_else(|| parser.value(), Ok).map_err(|_| missing())?;
    let value = value.into_string().map_err(|_| format!("--{name}: the value is not UTF-8"))?;
    // lexopt takes whatever comes next; an option there means that the value was forgotten.
    if value.starts_with("--") && !is_attached { Err(missing()) } else { Ok(value) }
}

/// Reads the arguments behind the program's name.
///
/// # Errors
/// A sentence for stderr, when they are not of the grammar; the exit code is then 2.
pub fn parse(flavor: Flavor, args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = Parser::from_args(args);
    let mut args = Args::of(flavor);
    let command = match command(&mut parser, &mut args)? {
        Ok(command) => command,
        Err(text) => return Ok(Command::Print(text)),
    };
    let page = format!("{PROGRAM} {} --help", command.name());
    loop {
        match parser.next().map_err(|error| format!("{error}; see {page}"))? {
            None => break,
            Some(Arg::Short('h') | Arg::Long("help")) => {
                return Ok(Command::Print(help(command, flavor)));
            }
            Some(Arg::Long(name)) => {
                let Some(flag) = flag(command, name) else {
                    let mut known: Vec<_> = flags(command).map(|flag| flag.name).collect();
                    known.push("help");
                    let hint = hint("--", nearest(name, &known), &page);
                    return Err(format!("{} has no option --{name}; {hint}", command.name()));
                };
                args.set(flag, &mut parser)?;
            }
            Some(other) => return Err(format!("{}; see {page}", other.unexpected())),
        }
    }
    let Args { sidecar, watch, json } = args;
    Ok(match command {
        Subcommand::Sidecar => Command::Sidecar(sidecar),
        Subcommand::Shutdown => {
            let SidecarArgs { overrides, control_socket, ignored, .. } = sidecar;
            Command::Shutdown(ShutdownArgs { overrides, control_socket, ignored })
        }
        Subcommand::Status => {
            Command::Status(StatusArgs { control_socket: sidecar.control_socket, watch, json })
        }
    })
}

/// Reads up to the command: that, or a text to print.
fn command(parser: &mut Parser, args: &mut Args) -> Result<Result<Subcommand, String>, String> {
    let page = format!("{PROGRAM} --help");
    let mut envoy = false;
    loop {
        match parser.next().map_err(|error| format!("{error}; see {page}"))? {
            None => return Err(format!("a command is missing; see {page}")),
            Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Err(overview())),
            Some(Arg::Short('V') | Arg::Long("version")) => {
                return Ok(Err(format!("{PROGRAM} {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Some(Arg::Long(LOG_FORMAT)) => {
                if let Some(flag) = flag(Subcommand::Sidecar, LOG_FORMAT) {
                    args.set(flag, parser)?;
                }
            }
            Some(Arg::Value(word)) => match word.to_str().unwrap_or_default() {
                "envoy" if !envoy => envoy = true,
                other @ ("bootstrap" | "certgen" | "gateway-provisioner" | "serve" | "server") => {
                    return Err(format!(
                        "this image is for the container shutdown-manager only: it has no {other}, \
                         which the image of Contour or Envoy Gateway has"
                    ));
                }
                name => {
                    return Subcommand::from_name(name).map(Ok).ok_or_else(|| {
                        let nearest = nearest(name, &Subcommand::ALL.map(Subcommand::name));
                        format!("there is no command {word:?}; {}", hint("", nearest, &page))
                    });
                }
            },
            Some(other) => {
                return Err(format!("{}, before any command; see {page}", other.unexpected()));
            }
        }
    }
}

fn hint(dashes: &str, nearest: Option<&str>, page: &str) -> String {
    match nearest {
        Some(nearest) => format!("did you mean {dashes}{nearest}? See {page}"),
        None => format!("see {page}"),
    }
}

#[cfg(test)]
mod tests;
