//! How many connections Envoy's listeners have accepted since its start, and how many HTTP requests
//! have come: whether a balancer still sends new ones.

use super::listener_gauges::thread_parent;
use super::{Exclusions, INTERNAL, Lines, ReadLines, named, number};
use crate::envoy::Arrivals;

/// The path and query of the request. Its own one, since it costs as much as a poll: Envoy matches the
/// names of all of its counters (measured with 10,000 clusters: 1.2 polls).
pub const ACCEPTED: &str = "/stats?type=Counters&usedonly&filter=\
    %5E(listener%5C..*%5C.downstream_cx%7Chttp%5C..*%5C.downstream_(cx%7Crq))_total$";

/// Adds up a response that comes in pieces.
pub struct AcceptedParser<'a> {
    exclusions: Exclusions<'a>,
    lines: Lines,
    accepted: u64,
    requests: u64,
    /// Connections of HTTP prefixes that are not counted, and of listeners that are not.
    excluded_http: u64,
    excluded_listeners: u64,
    /// Whether the admin interface's own are in it, so that the others' are too.
    sees_listeners: bool,
    sees_http: bool,
}

impl<'a> AcceptedParser<'a> {
    pub fn new(exclusions: Exclusions<'a>) -> Self {
        let lines = Lines::default();
        let (sees_listeners, sees_http) = (false, false);
        let (excluded_http, excluded_listeners) = (0, 0);
        Self {
            exclusions,
            lines,
            accepted: 0,
            requests: 0,
            excluded_http,
            excluded_listeners,
            sees_listeners,
            sees_http,
        }
    }

    /// The sums, once the whole response was pushed; none where `stats_config` hides the connections.
    pub fn finish(mut self) -> Option<Arrivals> {
        self.end();
        let requests = self.sees_http.then_some(self.requests);
        // Those of an excluded listener were not added.
        let excluded = self.excluded_http.saturating_sub(self.excluded_listeners);
        let connections = self.accepted.saturating_sub(excluded);
        self.sees_listeners.then_some(Arrivals { connections, requests })
    }
}

impl ReadLines for AcceptedParser<'_> {
    fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    fn line(&mut self, line: &[u8]) {
        let Some((name, Some(value))) = number(line) else { return };
        if let Some(prefix) =
            name.strip_prefix(b"http.").and_then(|name| named(name, b".downstream_rq_total"))
        {
            // Each poll is one.
            if prefix == b"admin" {
                self.sees_http = true;
            } else if !self.exclusions.excludes_prefix(prefix) {
                self.requests = self.requests.saturating_add(value);
            }
            return;
        }
        let prefix =
            name.strip_prefix(b"http.").and_then(|name| named(name, b".downstream_cx_total"));
        if let Some(prefix) = prefix {
            if prefix != b"admin" && self.exclusions.excludes_prefix(prefix) {
                self.excluded_http = self.excluded_http.saturating_add(value);
            }
            return;
        }
        let Some(listener) =
            name.strip_prefix(b"listener.").and_then(|name| named(name, b".downstream_cx_total"))
        else {
            return;
        };
        if listener == b"admin" {
            self.sees_listeners = true;
            return;
        }
        if thread_parent(listener).is_none() {
            // Those of internal listeners have come through another.
            let excluded = listener.starts_with(INTERNAL) || self.exclusions.excludes(listener);
            let sum = if excluded { &mut self.excluded_listeners } else { &mut self.accepted };
            *sum = sum.saturating_add(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(lines: &str) -> Option<Arrivals> {
        let names = ["stats".to_owned()];
        let exclusions = Exclusions { names: &names, ignored_suffixes: &["_19003"] };
        let mut parser = AcceptedParser::new(exclusions);
        for piece in lines.as_bytes().chunks(7) {
            assert!(parser.push(piece));
        }
        parser.finish()
    }

    #[test]
    fn what_clients_connections_are_is_added_up_once() {
        let lines = "listener.0.0.0.0_8080.downstream_cx_total: 7\n\
            listener.0.0.0.0_8080.worker_0.downstream_cx_total: 3\n\
            listener.0.0.0.0_8080.worker_1.downstream_cx_total: 4\n\
            listener.0.0.0.0_19003.downstream_cx_total: 100\n\
            listener.[__]_8443.downstream_cx_total: 20\n\
            listener.admin.downstream_cx_total: 1000\n\
            listener.admin.main_thread.downstream_cx_total: 1000\n\
            listener.envoy_internal_x.downstream_cx_total: 5\n\
            listener.stats.downstream_cx_total: 6\n\
            http.x.downstream_cx_total: 9\n\
            http.x.downstream_rq_total: 40\n\
            http.y.downstream_rq_total: 2\n\
            http.admin.downstream_rq_total: 500\n\
            http.stats.downstream_rq_total: 70\n\
            http.health.downstream_rq_total: 80\n\
            listener.odd.downstream_cx_total: many\n\
            listener.last.downstream_cx_total: 1";
        assert_eq!(accepted(lines), Some(Arrivals { connections: 28, requests: Some(42) }));
    }

    #[test]
    fn connections_of_excluded_prefixes_are_taken_off_unless_their_listeners_were_not_added() {
        let scraped = "listener.0.0.0.0_8002.downstream_cx_total: 50\n\
            listener.0.0.0.0_8080.downstream_cx_total: 7\n\
            listener.admin.downstream_cx_total: 9\n\
            http.admin.downstream_cx_total: 9\n\
            http.health.downstream_cx_total: 50\n\
            http.web.downstream_cx_total: 7\n";
        assert_eq!(accepted(scraped).map(|found| found.connections), Some(7));
        let excluded = format!(
            "{scraped}listener.0.0.0.0_19003.downstream_cx_total: 30\n\
            http.stats.downstream_cx_total: 30\n"
        );
        assert_eq!(accepted(&excluded).map(|found| found.connections), Some(7));
        // Its prefix has another name: what is doubtful counts.
        let other = format!("{scraped}listener.stats.downstream_cx_total: 20\n");
        assert_eq!(accepted(&other).map(|found| found.connections), Some(27));
    }

    #[test]
    fn listeners_that_are_not_shown_are_unknown_and_not_zero() {
        assert_eq!(accepted(""), None);
        let connections_alone = Arrivals { connections: 0, requests: None };
        assert_eq!(accepted("listener.admin.downstream_cx_total: 1\n"), Some(connections_alone));
        assert_eq!(accepted("http.admin.downstream_rq_total: 1\n"), None);
    }
}
