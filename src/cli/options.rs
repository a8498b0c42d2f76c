//! The options of a drain, which the sidecar and the hook share, and how the hook's override the
//! sidecar's.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::address::AdminAddress;
use super::duration;
pub use super::flags::DrainOption;
use crate::labels;

/// Polling faster than this would only keep Envoy's main thread busy.
pub const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(10);

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
    pub fn of(program: &OsStr) -> Self {
        let name = Path::new(program).file_name();
        if name == Some(OsStr::new("envoy-gateway")) { Self::EnvoyGateway } else { Self::Contour }
    }

    /// Listeners whose address in Envoy's stats ends like this are not counted: Envoy Gateway has
    /// listeners of its own for its scrapes and probes.
    pub const fn ignored_listener_suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Contour => &[],
            Self::EnvoyGateway => &["_19001", "_19003"],
        }
    }
}

labels! {
    /// What a drain waits for.
    pub enum WaitFor {
        Connections = "connections",
        /// HTTP connections without a request in flight do not hold it.
        Requests = "requests",
    }
}

/// The options of one drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Time between two polls of Envoy.
    pub check_interval: Duration,
    /// Time from failing health checks to the first poll.
    pub check_delay: Duration,
    /// Time from the start of the drain before which nothing is polled.
    pub min_drain_duration: Duration,
    /// The drain is done at this many open connections or fewer.
    pub min_open_connections: u64,
    /// Time from the start of the drain to failing health checks.
    pub drain_delay: Duration,
    /// Time from the end of that delay, when Envoy's listeners are drained, to failing health
    /// checks; zero: they are failed at once.
    pub health_check_failure_delay: Duration,
    /// Time from the start of the drain to giving up.
    pub drain_timeout: Option<Duration>,
    /// A delay ends early once no new connection has come for this long; zero: it does not.
    pub quiet_period: Duration,
    pub wait_for: WaitFor,
    /// The file in which Envoy's overload manager reads how far the drain is.
    pub injected_resource: Option<PathBuf>,
    /// Tell Envoy's listeners to drain, too.
    pub drain_listeners: bool,
    /// Drain only if Envoy's own hook waits, too.
    pub require_envoy_hook: bool,
    /// Listeners and HTTP stat prefixes that are not counted.
    pub exclude: Vec<String>,
    pub admin_address: AdminAddress,
    /// A file to create when drained.
    pub ready_file: Option<PathBuf>,
    /// It is not an option: it comes with the defaults.
    pub flavor: Flavor,
}

impl Default for Options {
    fn default() -> Self {
        Self::of(Flavor::default())
    }
}

impl Options {
    /// The defaults of a name.
    pub fn of(flavor: Flavor) -> Self {
        let contour = Self {
            check_interval: Duration::from_secs(5),
            check_delay: Duration::from_secs(60),
            min_drain_duration: Duration::ZERO,
            min_open_connections: 0,
            drain_delay: Duration::ZERO,
            health_check_failure_delay: Duration::ZERO,
            drain_timeout: None,
            quiet_period: Duration::ZERO,
            wait_for: WaitFor::Connections,
            injected_resource: None,
            drain_listeners: false,
            require_envoy_hook: false,
            exclude: Vec::new(),
            admin_address: AdminAddress::Unix(PathBuf::from("/admin/admin.sock")),
            ready_file: None,
            flavor,
        };
        match flavor {
            Flavor::Contour => contour,
            Flavor::EnvoyGateway => Self {
                check_interval: Duration::from_secs(1),
                check_delay: Duration::ZERO,
                min_drain_duration: Duration::from_secs(10),
                drain_timeout: Some(Duration::from_secs(60)),
                admin_address: AdminAddress::Tcp("localhost".to_owned(), 19000),
                ..contour
            },
        }
    }

    /// Sets an option from its text; `exclude` gets one name more.
    ///
    /// # Errors
    /// The rest of a sentence that begins with the option's name, when the text is not a value
    /// of that option.
    pub fn set(&mut self, option: DrainOption, text: &str) -> Result<(), String> {
        self.parse(option, text).map_err(|reason| format!("{text:?} is {reason}"))
    }

    fn parse(&mut self, option: DrainOption, text: &str) -> Result<(), &'static str> {
        match option {
            DrainOption::CheckInterval => {
                self.check_interval = at_least(MIN_CHECK_INTERVAL, text, "shorter than 10ms")?;
            }
            DrainOption::CheckDelay => self.check_delay = duration::parse(text)?,
            DrainOption::MinDrainDuration => self.min_drain_duration = duration::parse(text)?,
            DrainOption::MinOpenConnections => self.min_open_connections = number(text)?,
            DrainOption::DrainDelay => self.drain_delay = duration::parse(text)?,
            DrainOption::HealthCheckFailureDelay => {
                self.health_check_failure_delay = duration::parse(text)?;
            }
            DrainOption::DrainTimeout => self.drain_timeout = Some(duration::parse(text)?),
            DrainOption::QuietPeriod => self.quiet_period = duration::parse(text)?,
            DrainOption::WaitFor => {
                let named = WaitFor::from_name(text);
                self.wait_for = named.ok_or("neither connections nor requests")?;
            }
            DrainOption::ReadyFile | DrainOption::InjectedResource if text.is_empty() => {
                return Err("not a path");
            }
            DrainOption::InjectedResource => self.injected_resource = Some(PathBuf::from(text)),
            DrainOption::DrainListeners => self.drain_listeners = is_on(text)?,
            DrainOption::RequireEnvoyHook => self.require_envoy_hook = is_on(text)?,
            DrainOption::Exclude if text.is_empty() => {
                return Err("not the name of a listener or an HTTP stat prefix");
            }
            DrainOption::Exclude => self.exclude.push(text.to_owned()),
            DrainOption::AdminAddress => self.admin_address = AdminAddress::parse(text)?,
            DrainOption::ReadyFile => self.ready_file = Some(PathBuf::from(text)),
        }
        Ok(())
    }

    /// The option's value as texts that [`Options::set`] takes: none where it is not set, and
    /// several for `exclude` alone.
    pub fn get(&self, option: DrainOption) -> Vec<String> {
        let switch = |on: bool| Some(if on { ON } else { OFF }.to_owned());
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let value = match option {
            DrainOption::CheckInterval => Some(duration::format(self.check_interval)),
            DrainOption::CheckDelay => Some(duration::format(self.check_delay)),
            DrainOption::MinDrainDuration => Some(duration::format(self.min_drain_duration)),
            DrainOption::MinOpenConnections => Some(self.min_open_connections.to_string()),
            DrainOption::DrainDelay => Some(duration::format(self.drain_delay)),
            DrainOption::HealthCheckFailureDelay => {
                Some(duration::format(self.health_check_failure_delay))
            }
            DrainOption::DrainTimeout => self.drain_timeout.map(duration::format),
            DrainOption::QuietPeriod => Some(duration::format(self.quiet_period)),
            DrainOption::WaitFor => Some(self.wait_for.name().to_owned()),
            DrainOption::InjectedResource => path(&self.injected_resource),
            DrainOption::DrainListeners => switch(self.drain_listeners),
            DrainOption::RequireEnvoyHook => switch(self.require_envoy_hook),
            DrainOption::Exclude => return self.exclude.clone(),
            DrainOption::AdminAddress => Some(self.admin_address.to_string()),
            DrainOption::ReadyFile => path(&self.ready_file),
        };
        value.into_iter().collect()
    }

    /// These options with `overrides` in place of their own.
    pub fn with(&self, overrides: &Overrides) -> Self {
        let mut options = self.clone();
        if overrides.pairs().iter().any(|(option, _)| *option == DrainOption::Exclude) {
            options.exclude.clear();
        }
        for (option, text) in overrides.pairs() {
            // It does not fail: `Overrides::set` has tried it.
            let _ = options.set(*option, text);
        }
        options
    }

    /// What `overrides` would change here, as `name=value (whose: own value)`; empty if nothing.
    pub fn changes(&self, overrides: &Overrides, whose: &str) -> String {
        let other = self.with(overrides);
        let mut changes = String::new();
        for option in DrainOption::ALL {
            let (mut own, other) = (self.get(option), other.get(option));
            if own == other {
                continue;
            }
            // The other has a value: nothing unsets an option.
            if own.is_empty() {
                own.push("none".to_owned());
            }
            let separator = if changes.is_empty() { "" } else { ", " };
            let (name, other, own) = (option.name(), other.join(","), own.join(","));
            changes += &format!("{separator}{name}={other} ({whose}: {own})");
        }
        changes
    }

    /// Every option with its value, for the log.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = Vec::new();
        for option in DrainOption::ALL {
            let mut values = self.get(option);
            if values.is_empty() {
                values.extend(option.unset().map(str::to_owned));
            }
            settings.extend(values.into_iter().map(|value| (option.name(), value)));
        }
        settings
    }

    /// Time from the start of the drain to failing health checks.
    pub fn delay(&self) -> Duration {
        self.drain_delay.saturating_add(self.health_check_failure_delay)
    }

    /// Whether Envoy's listeners are to be drained, too.
    pub fn drains_listeners(&self) -> bool {
        self.drain_listeners || !self.health_check_failure_delay.is_zero()
    }
}

/// A duration, or `error` where it is shorter than `min`.
pub fn at_least(min: Duration, text: &str, error: &'static str) -> Result<Duration, &'static str> {
    duration::parse(text).and_then(|time| if time < min { Err(error) } else { Ok(time) })
}

/// The values of a switch, everywhere: on the command line, in a query and in the log.
pub const ON: &str = "true";
pub const OFF: &str = "false";

/// Whether a switch is on.
///
/// # Errors
/// The rest of a sentence that begins with the text, when it is neither of a switch's values.
fn is_on(text: &str) -> Result<bool, &'static str> {
    match text {
        ON => Ok(true),
        OFF => Ok(false),
        _ => Err("neither true nor false"),
    }
}

fn number(text: &str) -> Result<u64, &'static str> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("not a number of connections, 0 or more");
    }
    text.parse().map_err(|_| "too large a number")
}

/// The options that one command line gave, with valid values as [`Options::get`] writes them. The
/// others are left to the options that these are merged with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides(Vec<(DrainOption, String)>);

impl Overrides {
    /// Adds a value of `exclude`; any other option's replaces the one that was given before.
    ///
    /// # Errors
    /// As [`Options::set`].
    pub fn set(&mut self, option: DrainOption, text: &str) -> Result<(), String> {
        let mut scratch = Options::default();
        scratch.set(option, text)?;
        if option != DrainOption::Exclude {
            self.0.retain(|(other, _)| *other != option);
        }
        self.0.extend(scratch.get(option).into_iter().map(|value| (option, value)));
        Ok(())
    }

    pub fn has(&self, option: DrainOption) -> bool {
        self.0.iter().any(|(given, _)| *given == option)
    }

    pub fn pairs(&self) -> &[(DrainOption, String)] {
        &self.0
    }

    /// All of them in one text, `check-delay=10s drain-timeout=2m`.
    pub fn list(&self) -> String {
        let pairs = self.0.iter().map(|(option, value)| format!("{}={value}", option.name()));
        pairs.collect::<Vec<_>>().join(" ")
    }

    /// Removes the pairs for which `keep` is false.
    pub fn retain(&mut self, keep: &mut dyn FnMut(&(DrainOption, String)) -> bool) {
        self.0.retain(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::drain_request::{DrainRequest, HookRequest};
    use crate::os::clock::Timestamp;

    fn overrides(pairs: &[(DrainOption, &str)]) -> Overrides {
        let mut overrides = Overrides::default();
        for (option, text) in pairs {
            overrides.set(*option, text).unwrap();
        }
        overrides
    }

    /// A value other than either name's default for every option.
    fn everything() -> Overrides {
        overrides(&[
            (DrainOption::CheckInterval, "3s"),
            (DrainOption::CheckDelay, "2s"),
            (DrainOption::MinOpenConnections, "3"),
            (DrainOption::DrainDelay, "4s"),
            (DrainOption::HealthCheckFailureDelay, "6s"),
            (DrainOption::MinDrainDuration, "7s"),
            (DrainOption::DrainTimeout, "5s"),
            (DrainOption::QuietPeriod, "8s"),
            (DrainOption::WaitFor, "requests"),
            (DrainOption::InjectedResource, "/dev/shm/drain&1"),
            (DrainOption::DrainListeners, "true"),
            (DrainOption::RequireEnvoyHook, "true"),
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

        let switches = [DrainOption::DrainListeners, DrainOption::RequireEnvoyHook];
        let on = Options::default().with(&overrides(&switches.map(|switch| (switch, ON))));
        let off = on.with(&overrides(&switches.map(|switch| (switch, OFF))));
        assert!(on.drain_listeners && on.require_envoy_hook);
        assert_eq!(off, Options::default(), "a switch cannot be switched off");

        let drain = sidecar.with(&everything());
        assert_eq!(drain, Options::default().with(&everything()), "everything can be overridden");
        assert_eq!(drain.exclude, ["a=1&b c%", "\u{fc}.metrics"], "a list is replaced whole");
    }

    #[test]
    fn what_overrides_change_is_each_option_whose_value_differs_with_both_values() {
        let own = Options { exclude: vec!["metrics".to_owned()], ..Options::default() };
        let same =
            overrides(&[(DrainOption::CheckDelay, "60s"), (DrainOption::Exclude, "metrics")]);
        assert_eq!(own.changes(&same, "sidecar"), "", "the same values in other words");
        assert_eq!(own.changes(&Overrides::default(), "sidecar"), "");
        let others = overrides(&[
            (DrainOption::Exclude, "a"),
            (DrainOption::CheckInterval, "5s"),
            (DrainOption::RequireEnvoyHook, "true"),
            (DrainOption::DrainTimeout, "90s"),
            (DrainOption::Exclude, "b"),
        ]);
        assert_eq!(
            own.changes(&others, "sidecar"),
            "drain-timeout=1m30s (sidecar: none), require-envoy-hook=true (sidecar: false), \
             exclude=a,b (sidecar: metrics)"
        );
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
        assert_eq!(all.flavor, gateway.flavor, "it is not an option");
        assert_eq!(
            Options { flavor: Flavor::Contour, ..all },
            Options::default().with(&everything())
        );
        assert!(Flavor::Contour.ignored_listener_suffixes().is_empty());
    }

    #[test]
    fn a_request_survives_its_query() {
        let expires = Some(Timestamp::from_boot(Duration::from_nanos(123_456_789_012)));
        let drain = DrainRequest { overrides: everything(), expires };
        let request = HookRequest { drain, error: "no option --a=b&c; \u{fc}".to_owned() };
        let query = request.to_query();
        assert!(query.is_ascii() && !query.contains([' ', '#', '?']), "{query}");
        assert_eq!(HookRequest::from_query(&query), Ok(request));
        assert_eq!(HookRequest::from_query(""), Ok(HookRequest::default()));
        assert_eq!(HookRequest::default().to_query(), "");
    }

    #[test]
    fn a_bad_query_names_what_is_wrong() {
        for (query, reason) in [
            ("check-interval", "\"check-interval\" is not NAME=VALUE"),
            ("speed=1", "a drain has no option \"speed\""),
            ("check-delay=1", "check-delay: \"1\" is without a unit"),
            ("exclude=%ff", "the value of exclude is not UTF-8"),
            ("expires=soon", "expires=soon is not a time"),
        ] {
            let error = HookRequest::from_query(query).unwrap_err();
            assert!(error.starts_with(reason), "{query}: {error}");
        }
    }

    #[test]
    fn of_a_name_that_is_twice_in_a_query_the_last_one_holds() {
        let query = "check-delay=1s&expires=1&exclude=a&check-delay=2s&expires=2&exclude=b";
        let request = HookRequest::from_query(query).unwrap();
        assert_eq!(request.to_query(), "exclude=a&check-delay=2s&exclude=b&expires=2");
        assert!(HookRequest::from_query("check-delay=1&check-delay=2s").is_err());
    }

    #[test]
    fn an_option_given_twice_has_the_last_value_and_exclude_has_both() {
        let given = overrides(&[
            (DrainOption::DrainTimeout, "1s"),
            (DrainOption::Exclude, "a"),
            (DrainOption::DrainTimeout, "120s"),
            (DrainOption::Exclude, "b"),
            (DrainOption::DrainListeners, "true"),
            (DrainOption::DrainListeners, "true"),
        ]);
        let pairs = given.pairs().iter().map(|(option, text)| (option.name(), text.as_str()));
        assert_eq!(
            pairs.collect::<Vec<_>>(),
            [
                ("exclude", "a"),
                ("drain-timeout", "2m"),
                ("exclude", "b"),
                ("drain-listeners", "true")
            ]
        );
        let options = Options::default().with(&given);
        assert_eq!(options.drain_timeout, Some(Duration::from_secs(120)));
        assert_eq!(options.exclude, ["a", "b"]);
        let mut bad = given.clone();
        assert!(bad.set(DrainOption::DrainTimeout, "soon").is_err());
        assert_eq!(bad, given, "a bad value changes nothing");
    }

    #[test]
    fn what_get_writes_set_reads_for_every_option_under_every_name() {
        for flavor in [Flavor::Contour, Flavor::EnvoyGateway] {
            for from in [Options::of(flavor), Options::of(flavor).with(&everything())] {
                for option in DrainOption::ALL {
                    let mut to = Options::of(flavor);
                    to.exclude.clear();
                    let texts = from.get(option);
                    for text in &texts {
                        to.set(option, text).unwrap();
                    }
                    assert_eq!(to.get(option), texts, "{}", option.name());
                    let single = if option == DrainOption::Exclude { 2 } else { 1 };
                    assert!(texts.len() <= single, "{}: {texts:?}", option.name());
                }
            }
            let set = Options::of(flavor).with(&everything());
            for option in DrainOption::ALL {
                assert!(!set.get(option).is_empty(), "{} is not read", option.name());
                assert_ne!(set.get(option), Options::of(flavor).get(option), "{}", option.name());
            }
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
            (DrainOption::RequireEnvoyHook, "", "\"\" is neither true nor false"),
            (DrainOption::DrainListeners, "on", "\"on\" is neither true nor false"),
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
        let shows = |settings: &[(&str, String)], key, value: &str| {
            assert!(settings.contains(&(key, value.to_owned())), "{key}: {settings:?}");
        };
        shows(&settings, "check-delay", "1m");
        shows(&settings, "drain-timeout", "none");
        shows(&settings, "ready-file", "none");
        shows(&settings, "drain-listeners", "false");
        shows(&settings, "require-envoy-hook", "false");
        let settings = Options::default().with(&everything()).settings();
        shows(&settings, "drain-timeout", "5s");
        shows(&settings, "drain-listeners", "true");
        assert_eq!(settings.iter().filter(|(key, _)| *key == "exclude").count(), 2);
    }
}
