//! What the open connections of a poll are: by kind, by listener, by HTTP stat prefix. It is shown, and
//! ends no drain.

/// Names beyond these are shown as one: a line of the log and a page must be readable.
const MAX_NAMED: usize = 5;

/// A longer name is cut, in bytes: Envoy knows no limit, and a response has one. Those that are then the
/// same are one.
const MAX_NAME: usize = 250;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breakdown {
    /// Listeners with open connections, those whose clients have sent nothing yet included.
    pub listeners: Largest,
    /// HTTP stat prefixes with open connections, which are also in `listeners`.
    pub prefixes: Largest,
    pub kinds: Kinds,
    /// Requests in flight on HTTP connections; none where Envoy's stats do not show them.
    pub requests: Option<u64>,
    /// A counted HTTP stat prefix with connections whose requests are not shown.
    pub requests_hidden: Option<String>,
    /// What Envoy's overload manager has read of `--injected-resource`, in percent; none where it has not.
    pub pressure: Option<u64>,
    /// UDP sessions, which are not waited for.
    pub udp_sessions: u64,
    /// The length of the response.
    pub bytes: u64,
}

/// Open connections by what ends them. Each is at least 0: the gauges are not read in one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// HTTP: asked to leave by the next response.
    pub http: u64,
    /// HTTP upgraded to a stream (WebSocket, CONNECT): as TCP.
    pub upgraded: u64,
    /// TCP proxies and TLS passthrough: no protocol asks their clients to leave.
    pub tcp: u64,
    /// The client has sent nothing yet.
    pub silent: u64,
    /// Of the old process in a hot restart.
    pub parent: u64,
}

impl Kinds {
    pub const fn named(self) -> [(&'static str, u64); 5] {
        [
            ("http", self.http),
            ("upgraded", self.upgraded),
            ("tcp", self.tcp),
            ("silent", self.silent),
            ("parent", self.parent),
        ]
    }

    /// The kinds of which there are some, `2 http, 1 tcp`.
    pub fn list(self) -> Option<String> {
        let some = self.named().into_iter().filter(|(_, open)| *open > 0);
        let texts: Vec<_> = some.map(|(kind, open)| format!("{open} {kind}")).collect();
        Some(texts.join(", ")).filter(|list| !list.is_empty())
    }
}

/// The names with most open connections, the largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Largest {
    pub named: Vec<(String, u64)>,
    /// How many others there are, and their connections.
    pub others: u64,
    pub others_open: u64,
}

impl Largest {
    /// Adds one of all names. One without connections is not shown.
    pub fn add(&mut self, name: &[u8], open: u64) {
        if open == 0 {
            return;
        }
        let name = String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]);
        let known = self.named.iter().position(|(known, _)| *known == name);
        let before = known.map_or(0, |index| self.named.remove(index).1);
        let open = open.saturating_add(before);
        let rank = |open: u64, name: &str| (u64::MAX - open, name.to_owned());
        let new = rank(open, &name);
        let at = self.named.iter().position(|(known, open)| rank(*open, known) > new);
        self.named.insert(at.unwrap_or(self.named.len()), (name.into_owned(), open));
        if self.named.len() > MAX_NAMED
            && let Some((_, open)) = self.named.pop()
        {
            self.others += 1;
            self.others_open = self.others_open.saturating_add(open);
        }
    }

    /// All of them in one text, `0.0.0.0_8443 3, 0.0.0.0_8080 2, 4 others 4`.
    pub fn list(&self) -> Option<String> {
        let mut texts: Vec<_> =
            self.named.iter().map(|(name, open)| format!("{name} {open}")).collect();
        if self.others > 0 {
            texts.push(format!("{} others {}", self.others, self.others_open));
        }
        Some(texts.join(", ")).filter(|list| !list.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_five_are_named_and_the_rest_is_one() {
        let mut largest = Largest::default();
        for (name, open) in
            [("a", 3), ("b", 0), ("c", 9), ("d", 1), ("e", 3), ("f", 4), ("g", 2), ("h", 5)]
        {
            largest.add(name.as_bytes(), open);
        }
        assert_eq!(largest.list().unwrap(), "c 9, h 5, f 4, a 3, e 3, 2 others 3");
        assert_eq!(Largest::default().list(), None);
    }

    #[test]
    fn a_name_that_comes_twice_is_named_once() {
        let mut largest = Largest::default();
        for (name, open) in [("a", 3), ("b", 4), ("a", 2)] {
            largest.add(name.as_bytes(), open);
        }
        assert_eq!(largest.list().unwrap(), "a 5, b 4");
        let long = "n".repeat(60_000);
        largest.add(long.as_bytes(), 6);
        largest.add(&long.as_bytes()[1..], 1);
        assert_eq!(largest.named[0], (long[..MAX_NAME].to_owned(), 7));
    }

    #[test]
    fn kinds_without_connections_are_not_listed() {
        let kinds = Kinds { http: 2, silent: 1, ..Kinds::default() };
        assert_eq!(kinds.list().as_deref(), Some("2 http, 1 silent"));
        assert_eq!(Kinds::default().list(), None);
    }
}
