//! The command line: arguments in, a [`Command`] out. It is pure: it reads no environment. One table
//! of options serves the parser and the help. Every option is known under every name that the
//! program is started by; defaults differ.

pub mod address;
pub mod drain_request;
pub mod duration;
pub mod flags;
mod help;
mod nearest;
pub mod options;

use std::ffi::OsString;
use std::mem;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser};

use self::address::{ServeAt, socket_path};
use self::flags::{ArgsOption, Effect, Flag, LOG_FORMAT, Subcommand, flag, flags};
use self::help::{help, overview};
use self::nearest::nearest;
use self::options::{Flavor, OFF, ON, Overrides, at_least};
use crate::labels;

/// What the program calls itself.
pub const PROGRAM: &str = "envoy-shutdown-manager";

/// Minimum of `--start-timeout`: the kubelet starts both hooks at about the same time, either first.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Of a command line that is wrong throughout, the rest adds nothing.
const MAX_ERRORS: usize = 10;

/// What the program is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print this and exit with 0.
    Print(String),
    Run(Subcommand, Args),
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

/// The options of a command; those that it does not take have their defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    pub flavor: Flavor,
    /// Options of a drain: a hook's override the sidecar's.
    pub overrides: Overrides,
    /// `--serve-address` and `--serve-port`
    pub serve: ServeAt,
    pub start_timeout: Duration,
    pub ready_timeout: Option<Duration>,
    pub control_socket: Option<PathBuf>,
    pub no_restore: bool,
    pub log_format: LogFormat,
    pub watch: bool,
    pub json: bool,
    /// Options that were accepted without effect.
    pub ignored: Vec<&'static str>,
    /// What is wrong with the command line of a hook, a sentence each, which drains all the same.
    pub errors: Vec<String>,
}

impl Args {
    /// The defaults of a name.
    pub fn of(flavor: Flavor) -> Self {
        let (port, ready_timeout) = match flavor {
            Flavor::Contour => (8090, None),
            // Envoy Gateway's own: longer than any of its drains.
            Flavor::EnvoyGateway => (19002, Some(Duration::from_secs(610))),
        };
        Self {
            flavor,
            overrides: Overrides::default(),
            serve: ServeAt { address: None, port },
            start_timeout: Duration::from_secs(15),
            ready_timeout,
            control_socket: None,
            no_restore: false,
            log_format: LogFormat::default(),
            watch: false,
            json: false,
            ignored: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Takes an option's value and stores it. The option's name is added to an error here and
    /// nowhere else.
    fn set(&mut self, flag: &Flag, parser: &mut Parser) -> Result<(), String> {
        let value = match flag.placeholder {
            // As pflag takes a switch.
            "" => match parser.optional_value().as_ref().map(|value| value.as_encoded_bytes()) {
                None | Some(b"true") => ON,
                Some(b"false") => OFF,
                Some(_) => return Err(format!("--{} takes no value but true or false", flag.name)),
            }
            .to_owned(),
            placeholder => value(flag.name, placeholder, parser)?,
        };
        let result = match flag.effect {
            Effect::Drain(option) => self.overrides.set(option, &value),
            Effect::Args(option) => {
                self.parse(option, &value).map_err(|reason| format!("{value:?} is {reason}"))
            }
        };
        result.map_err(|reason| format!("--{}: {reason}", flag.name))
    }

    fn parse(&mut self, option: ArgsOption, text: &str) -> Result<(), &'static str> {
        match option {
            ArgsOption::AdminPort => self.ignored.push("admin-port"),
            ArgsOption::ServePort => {
                self.serve.port = text.parse().map_err(|_| "not a port, 0 to 65535")?;
            }
            ArgsOption::ServeAddress => {
                ServeAt::parse(text)?;
                self.serve.address = Some(text.to_owned());
            }
            ArgsOption::StartTimeout => {
                self.start_timeout = at_least(MIN_TIMEOUT, text, "shorter than 1s")?;
            }
            ArgsOption::ReadyTimeout => {
                self.ready_timeout = Some(at_least(MIN_TIMEOUT, text, "shorter than 1s")?);
            }
            ArgsOption::ControlSocket => self.control_socket = Some(socket_path(text)?),
            ArgsOption::NoRestore => self.no_restore = text == ON,
            ArgsOption::LogFormat => {
                self.log_format = LogFormat::from_name(text).ok_or("neither text nor json")?;
            }
            ArgsOption::Watch => self.watch = text == ON,
            ArgsOption::Json => self.json = text == ON,
        }
        Ok(())
    }

    /// The option's value, for the help; empty for a switch and where there is none.
    fn get(&self, option: ArgsOption) -> String {
        match option {
            ArgsOption::ServePort => self.serve.port.to_string(),
            ArgsOption::ServeAddress => "all of IPv6 and IPv4".to_owned(),
            ArgsOption::StartTimeout => duration::format(self.start_timeout),
            ArgsOption::ReadyTimeout => {
                self.ready_timeout.map_or("none".to_owned(), duration::format)
            }
            ArgsOption::ControlSocket => {
                "shutdown-manager.sock beside the admin socket, if there is one, else in /dev/shm"
                    .to_owned()
            }
            ArgsOption::LogFormat => self.log_format.name().to_owned(),
            ArgsOption::AdminPort
            | ArgsOption::NoRestore
            | ArgsOption::Watch
            | ArgsOption::Json => String::new(),
        }
    }
}

fn value(name: &str, placeholder: &str, parser: &mut Parser) -> Result<String, String> {
    let value = parser.optional_value().or_else(|| next_value(parser));
    let value = value.ok_or_else(|| format!("--{name} needs a value: --{name}={placeholder}"))?;
    value.into_string().map_err(|_| format!("--{name}: the value is not UTF-8"))
}

/// The next argument, unless that is an option, which means that the value was forgotten.
fn next_value(parser: &mut Parser) -> Option<OsString> {
    let mut rest = parser.try_raw_args()?;
    rest.next_if(|next| !next.as_encoded_bytes().starts_with(b"--"))
}

/// Reads the arguments behind the program's name. Those of a hook that are not of the grammar are in
/// [`Args::errors`], beside all that could be read.
///
/// # Errors
/// A sentence for stderr, when those of another command are not, or no command could be read; the
/// exit code is then 2.
pub fn parse(flavor: Flavor, args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = Parser::from_args(args);
    let mut args = Args::of(flavor);
    let command = match command(&mut parser, &mut args)? {
        Ok(command) => command,
        Err(text) => return Ok(Command::Print(text)),
    };
    let page = format!("{PROGRAM} {} --help", command.name());
    // The next argument may be the value of an option that is unknown: no mistake of its own.
    let mut value_follows = false;
    loop {
        let follows_unknown = mem::take(&mut value_follows);
        let (error, is_option) = match parser.next() {
            Ok(None) => break,
            Ok(Some(Arg::Short('h') | Arg::Long("help"))) => {
                return Ok(Command::Print(help(command, flavor)));
            }
            Ok(Some(Arg::Long(name))) => match flag(command, name) {
                Some(flag) => match args.set(flag, &mut parser) {
                    Ok(()) => continue,
                    Err(error) => (error, false),
                },
                None => (unknown(command, name, &page), true),
            },
            Ok(Some(Arg::Value(_))) if follows_unknown => continue,
            Ok(Some(other)) => {
                let is_option = matches!(other, Arg::Short(_));
                (format!("{}; see {page}", other.unexpected()), is_option)
            }
            Err(error) => (format!("{error}; see {page}"), false),
        };
        value_follows = is_option && parser.optional_value().is_none();
        if args.errors.len() < MAX_ERRORS {
            args.errors.push(error);
        }
    }
    if command == Subcommand::Shutdown {
        args.errors.extend(drain_request::drop_excess(&mut args.overrides));
    } else if !args.errors.is_empty() {
        return Err(args.errors.swap_remove(0));
    }
    Ok(Command::Run(command, args))
}

/// Reads up to the command: that, or a text to print.
fn command(parser: &mut Parser, args: &mut Args) -> Result<Result<Subcommand, String>, String> {
    let page = format!("{PROGRAM} --help");
    let mut envoy = false;
    loop {
        match parser.next().map_err(|error| format!("{error}; see {page}"))? {
            None => return Err(format!("a command is missing; see {page}")),
            Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Err(overview())),
            Some(Arg::Short('V') | Arg::Long("version")) => return Ok(Err(version())),
            Some(Arg::Long(LOG_FORMAT)) => {
                if let Some(flag) = flag(Subcommand::Sidecar, LOG_FORMAT) {
                    args.set(flag, parser)?;
                }
            }
            Some(Arg::Value(word)) => match word.to_str().unwrap_or_default() {
                "envoy" if !envoy => envoy = true,
                // As both products' programs have it.
                "version" if !envoy => return Ok(Err(version())),
                other @ ("bootstrap" | "certgen" | "gateway-provisioner" | "serve" | "server") => {
                    return Err(format!(
                        "this image is for the container shutdown-manager only: it has no {other}, \
                         which the image of Contour or Envoy Gateway has"
                    ));
                }
                name => {
                    if let Some(command) = Subcommand::from_name(name) {
                        return Ok(Ok(command));
                    }
                    let nearest = nearest(name, &Subcommand::ALL.map(Subcommand::name));
                    let hint = hint("", nearest, &page);
                    let sentence = format!("there is no command {word:?}; {hint}");
                    if nearest != Some(Subcommand::Shutdown.name()) {
                        return Err(sentence);
                    }
                    // A hook that is called wrongly drains all the same.
                    args.errors.push(sentence);
                    return Ok(Ok(Subcommand::Shutdown));
                }
            },
            Some(other) => {
                return Err(format!("{}, before any command; see {page}", other.unexpected()));
            }
        }
    }
}

fn version() -> String {
    format!("{PROGRAM} {}\n", env!("CARGO_PKG_VERSION"))
}

fn unknown(command: Subcommand, name: &str, page: &str) -> String {
    let mut known: Vec<_> = flags(command).map(|flag| flag.name).collect();
    known.push("help");
    let hint = hint("--", nearest(name, &known), page);
    format!("{} has no option --{name}; {hint}", command.name())
}

fn hint(dashes: &str, nearest: Option<&str>, page: &str) -> String {
    match nearest {
        Some(nearest) => format!("did you mean {dashes}{nearest}? See {page}"),
        None => format!("see {page}"),
    }
}

#[cfg(test)]
mod tests;
