//! The metrics in Prometheus' text format.

use super::counters::{EnvoyState, POLL_BUCKETS, PollDurations};
use super::json::seconds;
use super::status::{Snapshot, VERSION};
use crate::drain::{OutcomeKind, Phase};
use crate::envoy::error::AdminErrorKind;
use crate::os::clock::Timestamp;
use crate::route::{PublicRoute, Status};
use std::fmt::Write as _;

impl Snapshot {
    /// The metrics in Prometheus' text format.
    pub fn metrics(&self) -> String {
        let mut out = Metrics(String::new());
        out.family("build_info", "The version of the program; always 1.");
        out.labelled("build_info", &[("version", VERSION)], 1);
        out.family("phase", "Where the drain stands: 1 for the phase, 0 for the others.");
        for phase in Phase::ALL {
            out.labelled("phase", &[("phase", phase.name())], (phase == self.phase).into());
        }
        out.family("envoy_state", "Envoy's state, as last seen: 1 for it, 0 for the others.");
        for state in EnvoyState::ALL {
            let is_now = state == self.counters.envoy;
            out.labelled("envoy_state", &[("state", state.name())], is_now.into());
        }
        let time = |out: &mut Metrics, name, help, at: Option<Timestamp>| {
            out.family(name, help);
            if let Some(at) = at {
                out.line(name, &[], &seconds(self.wall(at).since_boot()));
            }
        };
        time(
            &mut out,
            "envoy_state_timestamp_seconds",
            "When Envoy's state was last seen.",
            self.counters.envoy_seen,
        );
        out.family(
            "open_connections",
            "Downstream connections open at the latest poll of a drain.",
        );
        let count = self.count();
        if let Some(count) = &count {
            out.sample("open_connections", count.open);
        }
        out.family(
            "holding",
            "What holds the drain: open connections, or requests in flight and connections other \
             than HTTP.",
        );
        if let Some(count) = &count {
            out.sample("holding", count.holding);
        }
        time(
            &mut out,
            "last_poll_timestamp_seconds",
            "When the open connections were counted.",
            count.as_ref().map(|count| count.at),
        );
        let breakdown = count.map(|count| count.breakdown);
        out.family(
            "listener_open_connections",
            "Open connections of the five listeners that have most.",
        );
        for (listener, open) in breakdown.iter().flat_map(|all| &all.listeners.named) {
            out.labelled("listener_open_connections", &[("listener", listener)], *open);
        }
        out.family("other_listeners_open_connections", "Open connections of the other listeners.");
        if let Some(all) = breakdown {
            out.sample("other_listeners_open_connections", all.listeners.others_open);
        }
        out.family(
            "http_open_connections",
            "Open HTTP connections of the five stat prefixes that have most.",
        );
        for (prefix, open) in breakdown.iter().flat_map(|all| &all.prefixes.named) {
            out.labelled("http_open_connections", &[("prefix", prefix)], *open);
        }
        out.family("kind_open_connections", "Open connections by what ends them.");
        for (kind, open) in breakdown.iter().flat_map(|all| all.kinds.named()) {
            out.labelled("kind_open_connections", &[("kind", kind)], open);
        }
        out.family(
            "new_connections_total",
            "New connections that Envoy has accepted in drains, as far as they were counted.",
        );
        out.sample("new_connections_total", self.counters.new_connections);
        time(
            &mut out,
            "last_new_connection_timestamp_seconds",
            "When the latest new connection of a drain was noticed.",
            self.counters.new_noticed,
        );
        out.family(
            "threshold_connections",
            "Downstream connections that may be open when a drain ends.",
        );
        out.sample("threshold_connections", self.threshold);
        time(
            &mut out,
            "drain_start_timestamp_seconds",
            "When the drain in progress started.",
            self.progress.as_ref().map(|progress| progress.started),
        );
        time(
            &mut out,
            "drain_deadline_timestamp_seconds",
            "When the drain in progress gives up, if it has a timeout.",
            self.gives_up_at(),
        );
        out.family(
            "drain_duration_seconds",
            "How long the drain in progress has taken so far, or the latest one took.",
        );
        let took = self.last.as_ref().map(|(ended, _)| ended.took);
        if let Some(duration) = self.elapsed().or(took) {
            out.line("drain_duration_seconds", &[], &seconds(duration));
        }
        let PollDurations { counts, sum } = &self.counters.poll_durations;
        out.family("poll_duration_seconds", "How long polls have taken, failed ones included.");
        let mut total = 0;
        for ((bound, _), count) in POLL_BUCKETS.iter().zip(counts) {
            total += count;
            out.labelled("poll_duration_seconds_bucket", &[("le", bound)], total);
        }
        total = counts.iter().sum();
        out.labelled("poll_duration_seconds_bucket", &[("le", "+Inf")], total);
        // Most take less than a millisecond.
        let sum = format!("{}.{:06}", sum.as_secs(), sum.subsec_micros());
        out.line("poll_duration_seconds_sum", &[], &sum);
        out.sample("poll_duration_seconds_count", total);
        out.family("poll_size_bytes", "The length of the latest poll.");
        if let Some(bytes) = self.counters.poll_bytes {
            out.sample("poll_size_bytes", bytes);
        }
        out.family("polls_total", "Polls of Envoy's stats, failed ones included.");
        out.sample("polls_total", self.counters.polls);
        out.family("poll_errors_total", "Failed polls of Envoy's stats.");
        for (kind, count) in AdminErrorKind::ALL.iter().zip(self.counters.poll_errors) {
            out.labelled("poll_errors_total", &[("kind", kind.name())], count);
        }
        out.family("drains_total", "Drains that have ended.");
        for (kind, count) in OutcomeKind::ALL.iter().zip(self.counters.drains) {
            out.labelled("drains_total", &[("outcome", kind.name())], count);
        }
        out.family("envoy_hooks", "Requests for /shutdown that wait for the end of a drain.");
        out.sample("envoy_hooks", self.envoy_hooks as u64);
        out.family("exec_hooks", "Exec hooks that wait for the end of a drain.");
        out.sample("exec_hooks", self.exec_hooks as u64);
        out.family("requests_total", "Requests that the public port has responded to.");
        let routes = PublicRoute::ALL.map(PublicRoute::name).into_iter().chain(["none"]);
        for (route, row) in routes.zip(self.counters.requests) {
            for (status, count) in Status::ALL.into_iter().zip(row) {
                // Series of zeros would be most of the page.
                if count > 0 || (status == Status::Ok && route != "none") {
                    let labels = [("route", route), ("code", status.code())];
                    out.labelled("requests_total", &labels, count);
                }
            }
        }
        out.family(
            "connections_rejected_total",
            "Connections to the public port that were evicted or not served, for want of a slot.",
        );
        out.sample("connections_rejected_total", self.counters.connections_rejected);
        out.0
    }
}

struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, help: &str) {
        let kind = match name {
            "poll_duration_seconds" => "histogram",
            name if name.ends_with("_total") => "counter",
            _ => "gauge",
        };
        // Writing to a String does not fail; so below.
        let _ = writeln!(
            self.0,
            "# HELP envoy_shutdown_{name} {help}\n# TYPE envoy_shutdown_{name} {kind}"
        );
    }

    fn sample(&mut self, name: &str, value: u64) {
        self.labelled(name, &[], value);
    }

    fn labelled(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.line(name, labels, &value.to_string());
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        let _ = write!(self.0, "envoy_shutdown_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{draining, idle};
    use super::*;

    /// The samples and their values, after checking the format: a HELP and a TYPE before each family,
    /// and no family twice.
    fn samples(text: &str) -> Vec<(&str, f64)> {
        let mut samples = Vec::new();
        let (mut family, mut seen) = ("", Vec::new());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split(' ').next().unwrap();
                assert!(!seen.contains(&family), "{family} twice");
                seen.push(family);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                assert_eq!(
                    kind == "histogram",
                    name.ends_with("_duration_seconds") && name.contains("poll")
                );
            } else {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let bare = name.split('{').next().unwrap();
                let part = bare.strip_prefix(family).expect("a sample of the family");
                assert!(["", "_bucket", "_sum", "_count"].contains(&part), "{name} of {family}");
                samples.push((name, value.parse().unwrap()));
            }
        }
        samples
    }

    #[test]
    fn metrics_follow_the_format_and_say_what_is() {
        let text = draining().metrics();
        let samples = samples(&text);
        for (name, value) in [
            ("envoy_shutdown_phase{phase=\"waiting_for_connections\"}", 1.0),
            ("envoy_shutdown_phase{phase=\"idle\"}", 0.0),
            ("envoy_shutdown_open_connections", 3.0),
            ("envoy_shutdown_threshold_connections", 1.0),
            ("envoy_shutdown_drain_duration_seconds", 72.345),
            ("envoy_shutdown_polls_total", 7.0),
            ("envoy_shutdown_poll_errors_total{kind=\"refused\"}", 1.0),
            ("envoy_shutdown_poll_errors_total{kind=\"content\"}", 6.0),
            ("envoy_shutdown_poll_errors_total{kind=\"other\"}", 8.0),
            ("envoy_shutdown_drains_total{outcome=\"drained\"}", 10.0),
            ("envoy_shutdown_drains_total{outcome=\"released\"}", 14.0),
            ("envoy_shutdown_drains_total{outcome=\"envoy_gone\"}", 12.0),
            ("envoy_shutdown_envoy_state{state=\"draining\"}", 1.0),
            ("envoy_shutdown_envoy_state{state=\"live\"}", 0.0),
            ("envoy_shutdown_envoy_state_timestamp_seconds", 1_699_999_998.5),
            ("envoy_shutdown_last_poll_timestamp_seconds", 1_699_999_997.5),
            ("envoy_shutdown_listener_open_connections{listener=\"0.0.0.0_8443\"}", 2.0),
            ("envoy_shutdown_other_listeners_open_connections", 0.0),
            ("envoy_shutdown_http_open_connections{prefix=\"ingress_\\\"http\\\"\"}", 2.0),
            ("envoy_shutdown_kind_open_connections{kind=\"tcp\"}", 1.0),
            ("envoy_shutdown_kind_open_connections{kind=\"silent\"}", 0.0),
            ("envoy_shutdown_new_connections_total", 44.0),
            ("envoy_shutdown_last_new_connection_timestamp_seconds", 1_699_999_980.0),
            ("envoy_shutdown_drain_start_timestamp_seconds", 1_699_999_927.655),
            ("envoy_shutdown_drain_deadline_timestamp_seconds", 1_700_000_047.655),
            ("envoy_shutdown_poll_duration_seconds_bucket{le=\"0.01\"}", 2.0),
            ("envoy_shutdown_poll_duration_seconds_bucket{le=\"10\"}", 5.0),
            ("envoy_shutdown_poll_duration_seconds_bucket{le=\"+Inf\"}", 6.0),
            ("envoy_shutdown_poll_duration_seconds_sum", 21.5),
            ("envoy_shutdown_poll_duration_seconds_count", 6.0),
            ("envoy_shutdown_poll_size_bytes", 321.0),
            ("envoy_shutdown_exec_hooks", 2.0),
            ("envoy_shutdown_drains_total{outcome=\"no_envoy_hook\"}", 13.0),
            ("envoy_shutdown_envoy_hooks", 1.0),
            ("envoy_shutdown_requests_total{route=\"healthz\",code=\"200\"}", 20.0),
            ("envoy_shutdown_requests_total{route=\"healthz\",code=\"405\"}", 21.0),
            ("envoy_shutdown_requests_total{route=\"healthz\",code=\"503\"}", 22.0),
            ("envoy_shutdown_requests_total{route=\"shutdown\",code=\"200\"}", 0.0),
            ("envoy_shutdown_requests_total{route=\"none\",code=\"404\"}", 23.0),
            ("envoy_shutdown_connections_rejected_total", 30.0),
        ] {
            assert!(samples.contains(&(name, value)), "{name} {value} in {text}");
        }
        let info = format!("envoy_shutdown_build_info{{version=\"{VERSION}\"}}");
        assert!(samples.contains(&(info.as_str(), 1.0)));
        let phases: f64 =
            samples.iter().filter(|(name, _)| name.contains("_phase{")).map(|s| s.1).sum();
        assert_eq!(phases, 1.0, "one phase at a time");
        let requests = samples.iter().filter(|(name, _)| name.contains("_requests_total{")).count();
        assert_eq!(requests, 6, "what there never was is left out");
    }

    #[test]
    fn metrics_leave_out_what_is_not_known() {
        let text = idle().metrics();
        let samples = samples(&text);
        for name in [
            "open_connections",
            "drain_duration_seconds",
            "drain_deadline_timestamp_seconds",
            "envoy_state_timestamp_seconds",
            "poll_size_bytes",
        ] {
            let name = format!("envoy_shutdown_{name}");
            assert!(!samples.iter().any(|(sample, _)| *sample == name), "{name} in {text}");
        }
    }

    #[test]
    fn every_route_and_status_has_its_place() {
        for (index, route) in PublicRoute::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, index, "{}", route.name());
        }
        for (index, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, index, "{}", status.code());
        }
    }

    #[test]
    fn every_kind_of_error_and_outcome_has_its_place() {
        for (index, kind) in AdminErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index, "{}", kind.name());
        }
        for (index, kind) in OutcomeKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index, "{}", kind.name());
            assert_eq!(OutcomeKind::from_name(kind.name()), Some(kind));
        }
    }
}
