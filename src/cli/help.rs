//! The help, made of the table of options and of the defaults that hold.

use std::fmt::Write as _;

use super::flags::{Effect, Flag, Subcommand, flags};
use super::options::{Flavor, Options};
use super::{Args, PROGRAM};

/// The help before any command.
pub fn overview() -> String {
    format!(
        "{PROGRAM} {}\n\
         Drains Envoy before Kubernetes ends its pod.\n\n\
         Usage:\n\
         \x20 {PROGRAM} [envoy] shutdown-manager [OPTIONS]   the sidecar: drains when its hook requests it\n\
         \x20 {PROGRAM} [envoy] shutdown [OPTIONS]           the preStop hook: starts the drain, blocks until it ends\n\
         \x20 {PROGRAM} status [--watch] [--json]            the state of the drain\n\
          \x20 {PROGRAM} restore                              puts an Envoy back in service that no drain holds\n\
         \x20 {PROGRAM} release                              ends the drain in progress, as its timeout would\n\
         \x20 {PROGRAM} --help | --version                   and --help after each command\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The help of a command, with the defaults of the name that the program is started by.
pub fn help(command: Subcommand, flavor: Flavor) -> String {
    let of_peers = matches!(command, Subcommand::Sidecar | Subcommand::Shutdown);
    let envoy = if of_peers { "[envoy] " } else { "" };
    let (name, about) = (command.name(), about(command));
    let mut text = format!("Usage: {PROGRAM} {envoy}{name} [OPTIONS]\n\n{about}\nOptions:\n");
    for flag in flags(command) {
        let equals = if flag.placeholder.is_empty() { "" } else { "=" };
        let (name, placeholder) = (flag.name, flag.placeholder);
        let _ = write!(text, "  --{name}{equals}{placeholder}\n      {}", flag.help);
        // Writing to a String does not fail.
        let _ = match default(flag, flavor) {
            default if default.is_empty() => writeln!(text),
            default => writeln!(text, " [{default}]"),
        };
    }
    text + "  --help\n      this text\n"
}

/// The default as the help shows it, empty for a switch and where there is none.
fn default(flag: &Flag, flavor: Flavor) -> String {
    match flag.effect {
        Effect::Drain(option) if !flag.placeholder.is_empty() => {
            let unset = || option.unset().unwrap_or_default().to_owned();
            Options::of(flavor).get(option).pop().unwrap_or_else(unset)
        }
        Effect::Drain(_) => String::new(),
        Effect::Args(option) => Args::of(flavor).get(option),
    }
}

const fn about(command: Subcommand) -> &'static str {
    match command {
        Subcommand::Sidecar => {
            "The sidecar: waits beside Envoy and drains it when its hook requests it.\n\
             The options of a drain apply unless the hook is given others.\n"
        }
        Subcommand::Shutdown => {
            "The preStop hook: starts the drain, or joins the one in progress, and blocks until it \
             ends.\n\
             Options given here override the sidecar's own; =false switches one of its switches off.\n\n\
             Exit codes: 0 drained, or Envoy is gone or left in service; 1 gave up, or released, with\n\
             connections open (as envoy-gateway 0);\n\
             2 wrong usage: at a terminal nothing is done, else the drain runs without what is wrong;\n\
             3 no sidecar could be reached, or only that of another Envoy.\n"
        }
        Subcommand::Status => {
            "Shows the state of the drain. Exit codes: 0; 2 wrong usage; 3 no sidecar.\n"
        }
        Subcommand::Restore => {
            "Restores Envoy to service, if no drain is in progress: after a drain by hand, say.\n\n\
             Exit codes: 0 Envoy is in service; 1 refused, or Envoy did not respond; 2 wrong usage;\n\
             3 no sidecar.\n"
        }
        Subcommand::Release => {
            "Ends the drain in progress as its timeout would: hooks return, and connections that are \
             still\n\
             open are cut when Kubernetes stops Envoy.\n\n\
             Exit codes: 0 ended; 1 no drain is in progress; 2 wrong usage; 3 no sidecar.\n"
        }
    }
}
