//! HTTP connections by stat prefix, and the requests in flight on them.

use super::breakdown::Largest;

/// The gauges of a stat prefix that is counted.
#[derive(Debug, Default)]
struct Prefix {
    name: Box<[u8]>,
    connections: u64,
    upgraded: u64,
    /// None where Envoy does not show them, and where there has been no request yet.
    requests: Option<u64>,
    /// Whether Envoy still holds bytes of a response for a client that reads slowly: a request is no
    /// longer in flight once its response is encoded, with up to 1.4 MB still to be sent (measured).
    sends: bool,
    /// Whether it has connections of HTTP/3. What is still to be sent on these shows nowhere: a response of
    /// which 60 of 300 kB were sent was neither in flight nor buffered (measured).
    has_http3: bool,
}

#[derive(Debug, Default)]
pub struct HttpGauges(Vec<Prefix>);

/// All prefixes together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HttpSum {
    pub connections: u64,
    /// Streams that were upgraded, each of them a request in flight too.
    pub upgraded: u64,
    pub requests: u64,
    /// What of it holds a drain that waits for requests.
    pub in_use: u64,
    /// A prefix with connections whose requests are not shown: the first of their names.
    pub requests_hidden: Option<String>,
}

impl HttpGauges {
    /// What is there twice is added.
    pub fn add_connections(&mut self, prefix: &[u8], connections: u64) {
        add(&mut self.of(prefix).connections, connections);
    }

    pub fn add_upgraded(&mut self, prefix: &[u8], upgraded: u64) {
        add(&mut self.of(prefix).upgraded, upgraded);
    }

    pub fn add_requests(&mut self, prefix: &[u8], requests: u64) {
        add(self.of(prefix).requests.get_or_insert(0), requests);
    }

    pub fn add_buffered(&mut self, prefix: &[u8], bytes: u64) {
        self.of(prefix).sends |= bytes > 0;
    }

    pub fn add_http3(&mut self, prefix: &[u8], connections: u64) {
        self.of(prefix).has_http3 |= connections > 0;
    }

    /// Envoy's lines are sorted, so that a prefix is mostly the latest one.
    fn of(&mut self, name: &[u8]) -> &mut Prefix {
        let index = self.0.iter().rposition(|prefix| *prefix.name == *name).unwrap_or_else(|| {
            self.0.push(Prefix { name: name.into(), ..Prefix::default() });
            self.0.len() - 1
        });
        &mut self.0[index]
    }

    /// Adds them up; `largest` gets those with connections.
    pub fn sum(&self, largest: &mut Largest) -> HttpSum {
        let mut sum = HttpSum::default();
        for prefix in &self.0 {
            largest.add(&prefix.name, prefix.connections);
            add(&mut sum.connections, prefix.connections);
            add(&mut sum.upgraded, prefix.upgraded);
            add(&mut sum.requests, prefix.requests.unwrap_or(0));
            let mut in_use = prefix.requests.unwrap_or(0).max(prefix.sends.into());
            if (prefix.requests.is_none() || prefix.has_http3) && prefix.connections > 0 {
                in_use = in_use.max(prefix.connections);
                let name = String::from_utf8_lossy(&prefix.name).into_owned();
                let first = sum.requests_hidden.take().map_or(name.clone(), |f| f.min(name));
                sum.requests_hidden = Some(first);
            }
            add(&mut sum.in_use, in_use);
        }
        sum
    }
}

fn add(sum: &mut u64, value: u64) {
    *sum = sum.saturating_add(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_without_a_request_is_not_in_use() {
        let mut gauges = HttpGauges::default();
        gauges.add_connections(b"web", 5);
        gauges.add_requests(b"web", 0);
        let mut largest = Largest::default();
        let sum = gauges.sum(&mut largest);
        let idle = HttpSum { connections: 5, ..HttpSum::default() };
        assert_eq!(sum, idle);
        assert_eq!(largest.list().as_deref(), Some("web 5"));
    }

    #[test]
    fn each_request_in_flight_counts_and_an_upgraded_one_once() {
        let mut gauges = HttpGauges::default();
        // Two CONNECT streams and a request on one connection.
        gauges.add_connections(b"h2", 1);
        gauges.add_upgraded(b"h2", 2);
        gauges.add_requests(b"h2", 3);
        gauges.add_connections(b"a", 4);
        gauges.add_requests(b"a", 1);
        let sum = gauges.sum(&mut Largest::default());
        assert_eq!((sum.connections, sum.upgraded, sum.requests, sum.in_use), (5, 2, 4, 4));
    }

    #[test]
    fn a_response_that_is_still_sent_holds_though_no_request_is_in_flight() {
        let mut gauges = HttpGauges::default();
        gauges.add_connections(b"web", 2);
        gauges.add_buffered(b"web", 196_288);
        gauges.add_requests(b"web", 0);
        assert_eq!(gauges.sum(&mut Largest::default()).in_use, 1);
        gauges.add_requests(b"web", 2);
        assert_eq!(gauges.sum(&mut Largest::default()).in_use, 2);
    }

    #[test]
    fn connections_whose_requests_are_not_shown_count_as_they_are() {
        let mut gauges = HttpGauges::default();
        gauges.add_connections(b"web", 2);
        gauges.add_connections(b"shown", 3);
        gauges.add_requests(b"shown", 0);
        gauges.add_connections(b"unused", 0);
        let sum = gauges.sum(&mut Largest::default());
        assert_eq!((sum.in_use, sum.requests_hidden.as_deref()), (2, Some("web")));
    }

    #[test]
    fn connections_of_a_prefix_with_http3_count_as_they_are_or_with_their_requests_if_those_are_more()
     {
        for (requests, in_use) in [(0, 3), (5, 5)] {
            let mut gauges = HttpGauges::default();
            gauges.add_connections(b"web", 3);
            gauges.add_http3(b"web", 1);
            gauges.add_requests(b"web", requests);
            gauges.add_connections(b"tcp", 2);
            gauges.add_http3(b"tcp", 0);
            gauges.add_requests(b"tcp", 0);
            let sum = gauges.sum(&mut Largest::default());
            assert_eq!((sum.in_use, sum.requests_hidden.as_deref()), (in_use, Some("web")));
        }
    }
}
