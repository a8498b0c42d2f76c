//! The table of the command line's options: what each is called, which commands take it, what it
//! does.
//!
//! A new option is five lines: its row here, its field in `Options` with its default there, and its
//! arm in `Options::set` and in `Options::get`; or the same in `Args`, where it is not a drain's.

use crate::labels;

labels! {
    /// A command, with its word on the command line.
    pub enum Subcommand {
        Sidecar = "shutdown-manager",
        Shutdown = "shutdown",
        Status = "status",
        Restore = "restore",
        Release = "release",
    }
}

/// An option of the command line.
pub struct Flag {
    /// Its name, behind `--`.
    pub name: &'static str,
    /// The placeholder of its value; empty for a switch, which may have `true` or `false`.
    pub placeholder: &'static str,
    /// The commands that take it.
    pub commands: &'static [Subcommand],
    pub help: &'static str,
    pub effect: Effect,
}

/// What an option sets.
pub enum Effect {
    /// Part of a drain's options, which `Options` parses and formats.
    Drain(DrainOption),
    /// A field of `Args`, which parses and formats it.
    Args(ArgsOption),
}

const EVERYWHERE: &[Subcommand] = &Subcommand::ALL;
const DRAINS: &[Subcommand] = &[Subcommand::Sidecar, Subcommand::Shutdown];
const SIDECAR: &[Subcommand] = &[Subcommand::Sidecar];
const STATUS: &[Subcommand] = &[Subcommand::Status];

/// One row for each option: its variant, name, placeholder, commands and help.
macro_rules! options {
    ($(#[$attr:meta])* $Enum:ident $FLAGS:ident $Effect:ident
        $($option:ident $name:literal $placeholder:literal $commands:ident $help:literal)*) => {
        labels! {
            $(#[$attr])*
            pub enum $Enum { $(#[doc = concat!("`--", $name, "`")] $option = $name,)* }
        }

        const $FLAGS: &[Flag] = &[$(Flag {
            name: $name,
            placeholder: $placeholder,
            commands: $commands,
            help: $help,
            effect: Effect::$Effect($Enum::$option),
        }),*];
    };
}

options! {
    /// The options of a drain, which the sidecar and the hook both take.
    DrainOption DRAIN_FLAGS Drain
    CheckInterval "check-interval" "DURATION" DRAINS
        "time between two polls of Envoy for open connections"
    CheckDelay "check-delay" "DURATION" DRAINS
        "time to wait, after failing health checks, before the first poll for open connections"
    MinDrainDuration "min-drain-duration" "DURATION" DRAINS
        "time from the start of the drain before which nothing is polled either"
    MinOpenConnections "min-open-connections" "NUMBER" DRAINS
        "the drain is done at this many open connections or fewer"
    DrainDelay "drain-delay" "DURATION" DRAINS
        "time to wait before failing health checks"
    HealthCheckFailureDelay "health-check-failure-delay" "DURATION" DRAINS
        "drain Envoy's listeners, and wait this long before failing health checks; see \
         --drain-listeners"
    DrainTimeout "drain-timeout" "DURATION" DRAINS
        "give up this long after the start of the drain"
    QuietPeriod "quiet-period" "DURATION" DRAINS
        "end either delay early once no new connection has reached Envoy for this long; no less than \
         the balancer takes to stop sending; 0s: off"
    WaitFor "wait-for" "WHAT" DRAINS
        "connections, or requests: an HTTP connection without a request in flight does not hold the \
         drain, and is cut when Kubernetes stops Envoy"
    InjectedResource "injected-resource" "PATH" DRAINS
        "the file that Envoy's overload manager reads (envoy.resource_monitors.injected_resource): \
         written in a drain, so that Envoy closes idle connections"
    DrainListeners "drain-listeners" "" DRAINS
        "after failing health checks also drain Envoy's listeners, which reaches HTTP/3 and \
         other listeners that ignore health checks. Only while Envoy's own hook waits on /shutdown, \
         because only a restart of Envoy undoes it: until then Envoy closes its clients' connections"
    RequireEnvoyHook "require-envoy-hook" "" DRAINS
        "drain only if Envoy's own hook waits on /shutdown already, or comes within 3s of the exec \
         hook; else that one ends with 0 and Envoy stays in service"
    Exclude "exclude" "NAME" DRAINS
        "do not count this listener or HTTP stat prefix: its exact name in Envoy's stats; may be \
         repeated"
    AdminAddress "admin-address" "ADDRESS" EVERYWHERE
        "Envoy's admin interface: a path, unix:PATH, @NAME, HOST:PORT or [IPV6]:PORT"
    ReadyFile "ready-file" "PATH" DRAINS
        "also create this file when drained; one that is left from before is removed at the start"
}

impl DrainOption {
    /// What help and log show where the option has no value; nothing for one that repeats.
    pub const fn unset(self) -> Option<&'static str> {
        match self {
            Self::Exclude => None,
            _ => Some("none"),
        }
    }
}

options! {
    /// The options that are not a drain's.
    ArgsOption ARGS_FLAGS Args
    AdminPort "admin-port" "PORT" DRAINS "ignored, as Contour does; use --admin-address"
    ServePort "serve-port" "PORT" DRAINS
        "the public port; 0 is any that is free; no effect on a hook"
    ServeAddress "serve-address" "IP" SIDECAR
        "the address of the public port; 127.0.0.1 for a pod on the host's network"
    StartTimeout "start-timeout" "DURATION" SIDECAR
        "answer a waiting /shutdown with 503 when no drain has started within this time"
    ReadyTimeout "ready-timeout" "DURATION" SIDECAR
        "answer a waiting /shutdown with 500 after this time, even while a drain is in progress"
    ControlSocket "control-socket" "PATH" EVERYWHERE "the socket between hook and sidecar"
    NoRestore "no-restore" "" SIDECAR
        "do not restore an Envoy that is out of service when the sidecar starts"
    LogFormat "log-format" "FORMAT" DRAINS
        "the sidecar's log on stdout: text (logfmt) or json; no effect on a hook"
    Watch "watch" "" STATUS
        "show it again and again: on a terminal in place, until q or Ctrl-C, else whenever it changes"
    Json "json" "" STATUS "show it as JSON"
}

const EXIT_AT_CONNECTIONS: &[Flag] = &[Flag {
    name: "exit-at-connections",
    placeholder: "NUMBER",
    commands: DRAINS,
    help: "another name of --min-open-connections",
    effect: Effect::Drain(DrainOption::MinOpenConnections),
}];

/// The one that Contour takes before the command, too.
pub const LOG_FORMAT: &str = "log-format";

/// The option of this name that the command takes.
pub fn flag(command: Subcommand, name: &str) -> Option<&'static Flag> {
    flags(command).find(|flag| flag.name == name)
}

/// The options that a command takes, in the order of its help.
pub fn flags(command: Subcommand) -> impl Iterator<Item = &'static Flag> {
    let all = DRAIN_FLAGS.iter().chain(EXIT_AT_CONNECTIONS).chain(ARGS_FLAGS);
    all.filter(move |flag| flag.commands.contains(&command))
}
