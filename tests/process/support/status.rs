//! The JSON of `/status`, and the metrics, parsed.

use std::str::FromStr;

use serde_json::Value;

use super::words::IDLE;

/// The status of a sidecar. A field that is missing fails the test.
#[derive(Clone, Debug)]
pub struct Status(Value);

impl Status {
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}")))
    }

    #[track_caller]
    fn field(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    #[track_caller]
    fn number(&self, name: &str) -> Option<u64> {
        let value = self.field(name);
        assert!(value.is_u64() || value.is_null(), "{name} is {value}");
        value.as_u64()
    }

    #[track_caller]
    pub fn phase(&self) -> &str {
        self.field("phase").as_str().expect("a text")
    }

    /// The number of the latest drain; 0 before the first.
    #[track_caller]
    pub fn drain(&self) -> u64 {
        self.number("drain").expect("a number")
    }

    #[track_caller]
    pub fn open_connections(&self) -> Option<u64> {
        self.number("open_connections")
    }

    /// What is compared with the threshold.
    #[track_caller]
    pub fn holding(&self) -> Option<u64> {
        self.number("holding")
    }

    #[track_caller]
    pub fn threshold_connections(&self) -> u64 {
        self.number("threshold_connections").expect("a number")
    }

    #[track_caller]
    pub fn elapsed_seconds(&self) -> Option<f64> {
        self.field("elapsed_seconds").as_f64()
    }

    /// Envoy's state, and how old it is in seconds.
    #[track_caller]
    pub fn envoy(&self) -> (&str, Option<f64>) {
        let state = self.field("envoy_state").as_str().expect("a text");
        (state, self.field("envoy_state_age_seconds").as_f64())
    }

    /// Any field.
    #[track_caller]
    pub fn get(&self, name: &str) -> &Value {
        self.field(name)
    }

    /// How many requests of Envoy's hook wait for the drain's end.
    #[track_caller]
    pub fn envoy_hooks(&self) -> u64 {
        self.number("envoy_hooks").expect("a number")
    }

    #[track_caller]
    pub fn last_error(&self) -> Option<&str> {
        self.field("last_error").as_str()
    }

    #[track_caller]
    pub fn error_contains(&self, part: &str) -> bool {
        self.last_error().is_some_and(|error| error.contains(part))
    }

    #[track_caller]
    pub fn stats_hidden(&self) -> Option<&str> {
        self.field("stats_hidden").as_str()
    }

    /// How the latest drain ended.
    #[track_caller]
    pub fn outcome(&self) -> Option<&str> {
        let outcome = self.field("last_drain");
        outcome.get("outcome").map(|name| name.as_str().expect("a text"))
    }

    /// The number of the latest drain that has ended.
    #[track_caller]
    pub fn drain_of_outcome(&self) -> Option<u64> {
        self.field("last_drain").get("drain").and_then(Value::as_u64)
    }

    #[track_caller]
    pub fn admin_address(&self) -> &str {
        self.field("admin_address").as_str().expect("a text")
    }

    /// Idle, and no drain has ever started.
    #[track_caller]
    pub fn is_before_the_first_drain(&self) -> bool {
        self.phase() == IDLE && self.drain() == 0
    }
}

/// The value of a series, named without its prefix, with its labels.
#[track_caller]
pub fn metric<T: FromStr>(metrics: &str, series: &str) -> T {
    let start = format!("envoy_shutdown_{series} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok());
    value.unwrap_or_else(|| panic!("no {series} in {metrics}"))
}
