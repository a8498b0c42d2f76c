//! What a drain is told: the options that the sidecar and the hook share, how the hook's
//! override the sidecar's, and the query in which they travel between the two.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::address::AdminAddress;
use crate::cli::duration;

/// Polling faster than this would only keep Envoy's main thread busy.
const SHORTEST_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// The name that the program is started by, which picks the defaults, so that its image takes the
/// place of another's with nothing else changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavor {
    /// `contour`, and any other.
    #[default]
    Contour,
    /// `envoy-gateway`
    EnvoyGateway,
}

impl Flavor {
    /// The name in a process's first argument, which is a path or was found on `PATH`.
    #[must_use]
    pub fn of(program: &OsStr) -> Self {
        let name = Path::new(program).file_name();
        if name == Some(OsStr::new("envoy-gateway")) { Self::EnvoyGateway } else { Self::Contour }
    }
}

/// What a drain is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Time between two polls of Envoy.
    pub check_interval: Duration,
    /// Time from failing health checks to the first poll.
    pub check_delay: Duration,
    /// The drain is done at this many open connections or fewer.
    pub min_open_connections: u64,
    /// Time from the start of the drain to failing health checks.
    pub drain_delay: Duration,
    /// Time from the end of that delay, when Envoy's listeners are told to drain, to failing health
    /// checks; none: they are failed at once.
    pub health_check_failure_delay: Duration,
    /// Time from the start of the drain before which nothing is polled.
    pub min_drain_duration: Duration,
    /// Time from the start of the drain to giving up.
    pub drain_timeout: Option<Duration>,
    /// Tell Envoy's listeners to drain, too.
    pub drain_listeners: bool,
    /// Drain only if Envoy's own hook waits, too.
    pub require_envoy_hook: bool,
    /// Listeners and HTTP stat prefixes that are not counted.
    pub exclude: Vec<String>,
    /// Envoy's admin interface.
    pub admin_address: AdminAddress,
    /// A file to create when drained.
    pub ready_file: Option<PathBuf>,
    /// Listeners are not counted either whose address, as Envoy's stats have it, ends so.
    pub ignored_listener_suffixes: &'static [&'static str],
}

impl Default for Options {
    /// The defaults of the name `contour`.
    fn default() -> Self {
        Self::of(Flavor::Contour)
    }
}

impl Options {
    /// The defaults of a name.
    #[must_use]
    pub fn of(name: Flavor) -> Self {
        let contour = Self {
            check_interval: Duration::from_secs(5),
            check_delay: Duration::from_secs(60),
            min_open_connections: 0,
            drain_delay: Duration::ZERO,
            health_check_failure_delay: Duration::ZERO,
            min_drain_duration: Duration::ZERO,
            drain_timeout: None,
            drain_listeners: false,
            require_envoy_hook: false,
            exclude: Vec::new(),
            admin_address: AdminAddress::Unix(PathBuf::from("/admin/admin.sock")),
            ready_file: None,
            ignored_listener_suffixes: &[],
        };
        match name {
            Flavor::Contour => contour,
            // Envoy Gateway has listeners of its own for its scrapes and probes.
            Flavor::EnvoyGateway => Self {
                check_interval: Duration::from_secs(1),
                check_delay: Duration::ZERO,
                min_drain_duration: Duration::from_secs(10),
                drain_timeout: Some(Duration::from_secs(60)),
                admin_address: AdminAddress::Tcp("localhost".to_owned(), 19000),
                ignored_listener_suffixes: &["_19001", "_19003"],
                ..contour
            },
        }
    }

    /// Time from the start of the drain to failing health checks.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.drain_delay.saturating_add(self.health_check_failure_delay)
    }

    /// Whether Envoy's listeners are to be told to drain.
    #[must_use]
    pub fn drains_listeners(&self) -> bool {
        self.drain_listeners || !self.health_check_failure_delay.is_zero()
    }

    /// These options with what `overrides` says in place of their own.
    #[must_use]
    pub fn with(&self, overrides: &Overrides) -> Self {
        let mut options = self.clone();
        set(&mut options.check_interval, overrides.check_interval.as_ref());
        set(&mut options.check_delay, overrides.check_delay.as_ref());
        set(&mut options.min_open_connections, overrides.min_open_connections.as_ref());
        set(&mut options.drain_delay, overrides.drain_delay.as_ref());
        let failure_delay = overrides.health_check_failure_delay.as_ref();
        set(&mut options.health_check_failure_delay, failure_delay);
        set(&mut options.min_drain_duration, overrides.min_drain_duration.as_ref());
        options.drain_listeners |= overrides.drain_listeners;
        options.drain_timeout = overrides.drain_timeout.or(options.drain_timeout);
        options.require_envoy_hook |= overrides.require_envoy_hook;
        set(&mut options.exclude, Some(&overrides.exclude).filter(|names| !names.is_empty()));
        set(&mut options.admin_address, overrides.admin_address.as_ref());
        if overrides.ready_file.is_some() {
            options.ready_file.clone_from(&overrides.ready_file);
        }
        options
    }

    /// Every option that is in force with its value, for the log.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let everything = Overrides {
            check_interval: Some(self.check_interval),
            check_delay: Some(self.check_delay),
            min_open_connections: Some(self.min_open_connections),
            drain_delay: Some(self.drain_delay),
            health_check_failure_delay: Some(self.health_check_failure_delay),
            min_drain_duration: Some(self.min_drain_duration),
            drain_timeout: self.drain_timeout,
            drain_listeners: self.drain_listeners,
            require_envoy_hook: self.require_envoy_hook,
            exclude: self.exclude.clone(),
            admin_address: Some(self.admin_address.clone()),
            ready_file: self.ready_file.clone(),
        };
        let mut settings = everything.pairs();
        for (option, none) in [
            (DrainOption::DrainTimeout, "none"),
            (DrainOption::DrainListeners, "off"),
            (DrainOption::RequireEnvoyHook, "off"),
            (DrainOption::ReadyFile, "none"),
        ] {
            if !settings.iter().any(|(name, _)| *name == option.name()) {
                settings.push((option.name(), none.to_owned()));
            }
        }
        settings
    }
}

fn set<T: Clone>(option: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        option.clone_from(value);
    }
}

/// The options of a drain, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainOption {
    /// `check-interval`
    CheckInterval,
    /// `check-delay`
    CheckDelay,
    /// `min-open-connections`
    MinOpenConnections,
    /// `drain-delay`
    DrainDelay,
    /// `health-check-failure-delay`
    HealthCheckFailureDelay,
    /// `min-drain-duration`
    MinDrainDuration,
    /// `drain-timeout`
    DrainTimeout,
    /// `drain-listeners`, which is [`ON`] or not given
    DrainListeners,
    /// `require-envoy-hook`, which is [`ON`] or not given
    RequireEnvoyHook,
    /// `exclude`, which may be given more than once
    Exclude,
    /// `admin-address`
    AdminAddress,
    /// `ready-file`
    ReadyFile,
}

/// The value of a switch.
pub const ON: &str = "on";

impl DrainOption {
    /// All of them, in the order in which help and log show them.
    pub const ALL: [Self; 12] = [
        Self::CheckInterval,
        Self::CheckDelay,
        Self::MinOpenConnections,
        Self::DrainDelay,
        Self::HealthCheckFailureDelay,
        Self::MinDrainDuration,
        Self::DrainTimeout,
        Self::DrainListeners,
        Self::RequireEnvoyHook,
        Self::Exclude,
        Self::AdminAddress,
        Self::ReadyFile,
    ];

    /// The name on the command line (behind `--`), in the query and in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CheckInterval => "check-interval",
            Self::CheckDelay => "check-delay",
            Self::MinOpenConnections => "min-open-connections",
            Self::DrainDelay => "drain-delay",
            Self::HealthCheckFailureDelay => "health-check-failure-delay",
            Self::MinDrainDuration => "min-drain-duration",
            Self::DrainTimeout => "drain-timeout",
            Self::DrainListeners => "drain-listeners",
            Self::RequireEnvoyHook => "require-envoy-hook",
            Self::Exclude => "exclude",
            Self::AdminAddress => "admin-address",
            Self::ReadyFile => "ready-file",
        }
    }
}

/// The options that one command line gave; the rest is left to whoever merges them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// See [`Options::check_interval`].
    pub check_interval: Option<Duration>,
    /// See [`Options::check_delay`].
    pub check_delay: Option<Duration>,
    /// See [`Options::min_open_connections`].
    pub min_open_connections: Option<u64>,
    /// See [`Options::drain_delay`].
    pub drain_delay: Option<Duration>,
    /// See [`Options::health_check_failure_delay`].
    pub health_check_failure_delay: Option<Duration>,
    /// See [`Options::min_drain_duration`].
    pub min_drain_duration: Option<Duration>,
    /// See [`Options::drain_timeout`].
    pub drain_timeout: Option<Duration>,
    /// See [`Options::drain_listeners`].
    pub drain_listeners: bool,
    /// See [`Options::require_envoy_hook`].
    pub require_envoy_hook: bool,
    /// See [`Options::exclude`]; empty where none was given.
    pub exclude: Vec<String>,
    /// See [`Options::admin_address`].
    pub admin_address: Option<AdminAddress>,
    /// See [`Options::ready_file`].
    pub ready_file: Option<PathBuf>,
}

impl Overrides {
    /// Sets an option from its text.
    ///
    /// # Errors
    /// The rest of a sentence that begins with the option's name, when the text is not a value
    /// of that option, or when it was given before and may not repeat.
    pub fn set(&mut self, option: DrainOption, text: &str) -> Result<(), String> {
        let bad = |reason: &str| format!("{text:?} is {reason}");
        let time = || duration::parse(text).map_err(bad);
        let on = || if text == ON { Ok(true) } else { Err(bad("not \"on\"")) };
        match option {
            DrainOption::CheckInterval => {
                let interval = time()?;
                if interval < SHORTEST_CHECK_INTERVAL {
                    return Err(bad("shorter than 10ms"));
                }
                once(&mut self.check_interval, interval)
            }
            DrainOption::CheckDelay => once(&mut self.check_delay, time()?),
            DrainOption::DrainDelay => once(&mut self.drain_delay, time()?),
            DrainOption::HealthCheckFailureDelay => {
                once(&mut self.health_check_failure_delay, time()?)
            }
            DrainOption::MinDrainDuration => once(&mut self.min_drain_duration, time()?),
            DrainOption::DrainTimeout => once(&mut self.drain_timeout, time()?),
            DrainOption::MinOpenConnections => {
                if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(bad("not a number of connections, 0 or more"));
                }
                once(
                    &mut self.min_open_connections,
                    text.parse().map_err(|_| bad("too large a number"))?,
                )
            }
            DrainOption::DrainListeners => {
                self.drain_listeners = on()?;
                Ok(())
            }
            DrainOption::RequireEnvoyHook => {
                self.require_envoy_hook = on()?;
                Ok(())
            }
            DrainOption::Exclude => {
                if text.is_empty() {
                    return Err(bad("not the name of a listener or an HTTP stat prefix"));
                }
                self.exclude.push(text.to_owned());
                Ok(())
            }
            DrainOption::AdminAddress => {
                once(&mut self.admin_address, AdminAddress::parse(text).map_err(bad)?)
            }
            DrainOption::ReadyFile => {
                if text.is_empty() {
                    return Err(bad("not a path"));
                }
                once(&mut self.ready_file, PathBuf::from(text))
            }
        }
    }

    /// What was given, as names and values that [`Overrides::set`] takes.
    #[must_use]
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = Vec::new();
        for option in DrainOption::ALL {
            let value = match option {
                DrainOption::CheckInterval => self.check_interval.map(duration::format),
                DrainOption::CheckDelay => self.check_delay.map(duration::format),
                DrainOption::MinOpenConnections => {
                    self.min_open_connections.map(|number| number.to_string())
                }
                DrainOption::DrainDelay => self.drain_delay.map(duration::format),
                DrainOption::HealthCheckFailureDelay => {
                    self.health_check_failure_delay.map(duration::format)
                }
                DrainOption::MinDrainDuration => self.min_drain_duration.map(duration::format),
                DrainOption::DrainTimeout => self.drain_timeout.map(duration::format),
                DrainOption::DrainListeners => self.drain_listeners.then(|| ON.to_owned()),
                DrainOption::RequireEnvoyHook => self.require_envoy_hook.then(|| ON.to_owned()),
                DrainOption::AdminAddress => {
                    self.admin_address.as_ref().map(AdminAddress::to_string)
                }
                DrainOption::ReadyFile => {
                    self.ready_file.as_ref().map(|path| path.display().to_string())
                }
                DrainOption::Exclude => {
                    pairs.extend(self.exclude.iter().map(|name| (option.name(), name.clone())));
                    None
                }
            };
            pairs.extend(value.map(|value| (option.name(), value)));
        }
        pairs
    }
}

/// Puts a value where none was: Contour refuses an option that is given twice, and a silent "last
/// one wins" hides a mistake.
///
/// # Errors
/// A clause that fits behind the option's name, when there was one before.
pub fn once<T>(place: &mut Option<T>, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err("is given twice".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::drain_request::DrainRequest;
    use crate::os::clock::Timestamp;

    fn overrides(pairs: &[(DrainOption, &str)]) -> Overrides {
        let mut overrides = Overrides::default();
        for (option, text) in pairs {
            overrides.set(*option, text).unwrap();
        }
        overrides
    }

    /// A value other than the default for every option.
    fn everything() -> Overrides {
        overrides(&[
            (DrainOption::CheckInterval, "1s"),
            (DrainOption::CheckDelay, "2s"),
            (DrainOption::MinOpenConnections, "3"),
            (DrainOption::DrainDelay, "4s"),
            (DrainOption::HealthCheckFailureDelay, "6s"),
            (DrainOption::MinDrainDuration, "7s"),
            (DrainOption::DrainTimeout, "5s"),
            (DrainOption::DrainListeners, "on"),
            (DrainOption::RequireEnvoyHook, "on"),
            (DrainOption::Exclude, "a=1&b c%"),
            (DrainOption::Exclude, "\u{fc}.metrics"),
            (DrainOption::AdminAddress, "[::1]:9001"),
            (DrainOption::ReadyFile, "/admin/ok?"),
        ])
    }

    #[test]
    fn the_hooks_options_override_the_sidecars_and_leave_the_rest() {
        let sidecar = Options::default().with(&overrides(&[
            (DrainOption::CheckInterval, "1s"),
            (DrainOption::CheckDelay, "10s"),
            (DrainOption::Exclude, "metrics"),
            (DrainOption::DrainTimeout, "9s"),
        ]));
        let drain = sidecar.with(&overrides(&[(DrainOption::CheckDelay, "0")]));
        assert_eq!(drain, Options { check_delay: Duration::ZERO, ..sidecar.clone() });
        assert_eq!(sidecar.check_interval, Duration::from_secs(1));
        assert_eq!(sidecar.exclude, ["metrics"]);

        let drain = sidecar.with(&everything());
        assert_eq!(drain, Options::default().with(&everything()), "everything can be overridden");
        assert_eq!(drain.exclude, ["a=1&b c%", "\u{fc}.metrics"], "a list is replaced whole");
    }

    #[test]
    fn the_name_is_that_of_the_program_wherever_it_is() {
        for (program, name) in [
            ("envoy-gateway", Flavor::EnvoyGateway),
            ("/usr/local/bin/envoy-gateway", Flavor::EnvoyGateway),
            ("/bin/contour", Flavor::Contour),
            ("envoy-shutdown-manager", Flavor::Contour),
            ("/envoy-gateway/contour", Flavor::Contour),
            ("my-envoy-gateway", Flavor::Contour),
            ("", Flavor::Contour),
        ] {
            assert_eq!(Flavor::of(OsStr::new(program)), name, "{program}");
        }
        assert_eq!(Options::default(), Options::of(Flavor::Contour));
        let gateway = Options::of(Flavor::EnvoyGateway);
        let all = gateway.with(&everything());
        assert_eq!(
            all.ignored_listener_suffixes, gateway.ignored_listener_suffixes,
            "these are not an option"
        );
        assert_eq!(
            Options { ignored_listener_suffixes: &[], ..all },
            Options::default().with(&everything())
        );
    }

    #[test]
    fn a_request_survives_its_query() {
        let request = DrainRequest {
            overrides: everything(),
            expires: Some(Timestamp::from_start(Duration::from_nanos(123_456_789_012))),
        };
        let query = request.to_query();
        assert!(query.is_ascii() && !query.contains([' ', '#', '?']), "{query}");
        assert_eq!(DrainRequest::from_query(&query), Ok(request));
        assert_eq!(DrainRequest::from_query(""), Ok(DrainRequest::default()));
        assert_eq!(DrainRequest::default().to_query(), "");
    }

    #[test]
    fn a_bad_query_names_what_is_wrong() {
        for (query, reason) in [
            ("check-interval", "\"check-interval\" is not NAME=VALUE"),
            ("speed=1", "a drain has no option \"speed\""),
            ("check-delay=1", "check-delay: \"1\" is without a unit"),
            ("check-delay=1s&check-delay=1s", "check-delay: is given twice"),
            ("exclude=%ff", "the value of exclude is not UTF-8"),
            ("expires=soon", "expires=soon is no time"),
            ("expires=1&expires=1", "expires is given twice"),
        ] {
            let error = DrainRequest::from_query(query).unwrap_err();
            assert!(error.starts_with(reason), "{query}: {error}");
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_its_reason() {
        for (option, text, reason) in [
            (DrainOption::CheckInterval, "0", "\"0\" is shorter than 10ms"),
            (DrainOption::CheckInterval, "9ms", "\"9ms\" is shorter than 10ms"),
            (DrainOption::DrainDelay, "-1s", "\"-1s\" is negative"),
            (DrainOption::DrainTimeout, "soon", "\"soon\" is not a duration"),
            (DrainOption::MinOpenConnections, "-1", "\"-1\" is not a number of connections"),
            (DrainOption::MinOpenConnections, "+1", "\"+1\" is not a number of connections"),
            (DrainOption::MinOpenConnections, "", "\"\" is not a number of connections"),
            (
                DrainOption::MinOpenConnections,
                "99999999999999999999",
                "\"99999999999999999999\" is too",
            ),
            (DrainOption::RequireEnvoyHook, "off", "\"off\" is not \"on\""),
            (DrainOption::DrainListeners, "true", "\"true\" is not \"on\""),
            (DrainOption::MinDrainDuration, "10", "\"10\" is without a unit"),
            (DrainOption::HealthCheckFailureDelay, "-1s", "\"-1s\" is negative"),
            (DrainOption::Exclude, "", "\"\" is not the name"),
            (DrainOption::AdminAddress, "localhost", "\"localhost\" is neither"),
            (DrainOption::ReadyFile, "", "\"\" is not a path"),
        ] {
            let error = Overrides::default().set(option, text).unwrap_err();
            assert!(error.starts_with(reason), "{} {text}: {error}", option.name());
        }
        assert!(Overrides::default().set(DrainOption::CheckInterval, "10ms").is_ok());
    }

    #[test]
    fn the_log_shows_every_setting() {
        let settings = Options::default().settings();
        for option in DrainOption::ALL {
            let shown = settings.iter().any(|(name, _)| *name == option.name());
            assert!(shown || option == DrainOption::Exclude, "{} is not shown", option.name());
        }
        assert!(settings.contains(&("check-delay", "1m".to_owned())));
        assert!(settings.contains(&("drain-timeout", "none".to_owned())));
        let settings = Options::default().with(&everything()).settings();
        assert!(settings.contains(&("drain-timeout", "5s".to_owned())));
        assert_eq!(settings.iter().filter(|(name, _)| *name == "exclude").count(), 2);
    }
}
