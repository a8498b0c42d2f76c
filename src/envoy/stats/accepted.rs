//! How many connections Envoy's listeners have accepted since its start. It is shown, and ends no drain:
//! it says whether a balancer still sends new ones.

use super::listener_gauges::thread_parent;
use super::{Exclusions, INTERNAL, Lines, ReadLines, named, number};

/// The path and query of the request. Its own one, since it costs as much as a poll: Envoy matches the
/// names of all of its counters (measured with 10,000 clusters: 1.2 polls).
pub const ACCEPTED: &str =
    "/stats?type=Counters&usedonly&filter=%5Elistener%5C..*%5C.downstream_cx_total$";

/// Adds up a response that comes in pieces.
pub struct AcceptedParser<'a> {
    exclusions: Exclusions<'a>,
    lines: Lines,
    accepted: u64,
    /// Whether the admin interface's own connections are in it, so that the others' are too.
    sees_listeners: bool,
}

impl<'a> AcceptedParser<'a> {
    pub fn new(exclusions: Exclusions<'a>) -> Self {
        Self { exclusions, lines: Lines::default(), accepted: 0, sees_listeners: false }
    }

    /// The sum, once the whole response was pushed; none where `stats_config` hides it.
    pub fn finish(mut self) -> Option<u64> {
        self.end();
        self.sees_listeners.then_some(self.accepted)
    }
}

impl ReadLines for AcceptedParser<'_> {
    fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    fn line(&mut self, line: &[u8]) {
        let Some((name, Some(value))) = number(line) else { return };
        let Some(listener) =
            name.strip_prefix(b"listener.").and_then(|name| named(name, b".downstream_cx_total"))
        else {
            return;
        };
        if listener == b"admin" {
            self.sees_listeners = true;
        } else if thread_parent(listener).is_none()
            && !listener.starts_with(INTERNAL)
            && !self.exclusions.excludes(listener)
        {
            self.accepted = self.accepted.saturating_add(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(lines: &str) -> Option<u64> {
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
            listener.odd.downstream_cx_total: many\n\
            listener.last.downstream_cx_total: 1";
        assert_eq!(accepted(lines), Some(28));
    }

    #[test]
    fn listeners_that_are_not_shown_are_unknown_and_not_zero() {
        assert_eq!(accepted(""), None);
        assert_eq!(accepted("listener.admin.downstream_cx_total: 1\n"), Some(0));
    }
}
