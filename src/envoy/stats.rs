//! How many downstream connections are open, from the response to one request for Envoy's stats.
//!
//! This is the one place that says how connections are counted.
//!
//! ```text
//! open = Σ listener.NAME.downstream_cx_active + Σ listener.NAME.downstream_pre_cx_active
//!      − Σ http.PREFIX.downstream_cx_active over the excluded prefixes
//!      + server.parent_connections
//! ```
//!
//! Wherever the response leaves a doubt, the larger number is taken: a drain that ends too late
//! costs time, one that ends too early cuts connections.
//!
//! - **Listeners** are counted, since their gauges cover HTTP, TCP proxies, TLS passthrough and QUIC.
//!   `pre_cx` has the clients that have sent nothing yet. The admin interface is not counted;
//!   internal listeners (`envoy_internal_…`) are not, since each of their connections comes through
//!   another listener or from Envoy itself; nor are threads' copies (`….worker_0`), of which only
//!   the sum is used, where it is larger. UDP sessions are neither counted nor waited for: they end
//!   by their idle timeout alone.
//! - **Excluded prefixes** are those of scrapes and health checks. Their connections are subtracted,
//!   less those of excluded and of internal listeners, which were not added.
//! - **A floor.** A listener may hide its own gauges, and HTTP connections show all the same. The sum
//!   is never less than `http.PREFIX.downstream_cx_active` over the other prefixes, less the
//!   connections of internal listeners, and of excluded listeners as far as they are more than the
//!   excluded prefixes have.
//! - **Hot restart.** The new process responds. `server.parent_connections` has the old process's, and
//!   the gauges have them once more where the new process has had connections of its own, so that they
//!   count twice until they end. Before its first flush of stats the new process does not show that gauge
//!   (measured), and nothing can be counted.
//!
//! A drain that waits for requests (`--wait-for=requests`) is held by less:
//!
//! ```text
//! in use = open − Σ http.PREFIX.downstream_cx_active + Σ http.PREFIX.downstream_rq_active
//! ```
//!
//! An upgraded connection (WebSocket, CONNECT) is a request in flight as well. A prefix counts with its
//! connections if its requests are not shown or one of them is of HTTP/3, and at least one if it still
//! sends a response (`downstream_cx_tx_bytes_buffered`): a request is in flight until that is encoded.
//! TCP connections show in this difference alone, so that it may lie as any subtraction may.
//!
//! A subtraction may lie. Envoy renders `http.…` before `listener.…`, and an excluded connection that
//! closes in the 3 to 11 µs between is subtracted though it was not added, so that it hides another
//! one. With *n* such connections a second, one poll lies with a probability of *n* × 5 to 11 µs (2 to
//! 3 % at 3,400 a second, `just race`). [`Observation::subtracted`] says whether it could: then one poll alone must
//! not end a drain.
//!
//! A listener that hides all of its gauges shows in no poll: see [`super::listeners`]. If it is an
//! excluded or an internal one, nothing can be subtracted, since what is its own was not added. Else
//! `server.total_connections` is a second count, of all workers: hidden listeners, scrapes and internal
//! listeners included, silent clients and the admin interface not. Envoy refreshes it with
//! `server.uptime` at each flush of its stats, every 5 s by default.
//!
//! An example, from `tests/stats/05-mixed-1.40` (3 clients of an HTTP listener, 2 of a TCP proxy, 2 of
//! a listener with a TLS inspector, of which one is silent, and a scrape):
//!
//! ```text
//! http.admin.downstream_cx_active: 2                      the poll is one: HTTP is visible
//! http.ingress_http.downstream_cx_active: 3               a floor of 3
//! http.stats.downstream_cx_active: 1                      − 1
//! listener.127.0.0.1_21601.downstream_cx_active: 3        + 3
//! listener.127.0.0.1_21601.downstream_pre_cx_active: 0
//! listener.127.0.0.1_21601.worker_0.downstream_cx_active: 1   a copy
//! listener.127.0.0.1_21601.worker_1.downstream_cx_active: 2   a copy; both have 3 as well
//! listener.127.0.0.1_21602.downstream_cx_active: 2        + 2
//! listener.127.0.0.1_21603.downstream_cx_active: 1        + 1
//! listener.127.0.0.1_21603.downstream_pre_cx_active: 1    + 1, the silent client
//! listener.127.0.0.1_21604.downstream_cx_active: 1        + 1, the scrape
//! listener.admin.downstream_cx_active: 2                  the poll is one: listeners are visible
//! server.live: 1                                          open = 7, subtracted
//! ```

mod accepted;
mod breakdown;
mod gauges;
mod http_gauges;
mod listener_gauges;

use std::fmt;

pub use self::accepted::{ACCEPTED, AcceptedParser};
pub use self::breakdown::{Breakdown, Kinds, Largest};
pub use self::gauges::{Gauge, Lines, ReadLines, named, number};
use self::http_gauges::HttpGauges;
pub use self::listener_gauges::{Listener, ListenerGauges, thread_parent};
use super::ServerTotal;

/// The path and query of a poll. As text with `usedonly`, since on an Envoy with 10,000 clusters
/// it costs a twentieth of what the Prometheus form does.
pub const REQUEST: &str = "/stats?type=Gauges&usedonly&filter=\
    %5E(server%5C.(live%7Chot_restart_epoch%7Cparent_connections%7Ctotal_connections%7Cuptime)%7C\
    (http%7Clistener%7Cudp)%5C..*%5C.downstream_((pre_)?cx%7Ccx_http3%7Ccx_upgrades%7Crq%7Csess)_active%7C\
    http%5C..*%5C.downstream_cx_tx_bytes_buffered%7Coverload%5C..*injected_resource.pressure)$";

/// A response longer than this is not one to [`REQUEST`]: 300 listeners on 64 workers are 1.1 MB.
pub const MAX_BODY: usize = 16 << 20;

/// HTTP stat prefixes of Envoy's, Contour's and Envoy Gateway's own listeners, which serve no traffic
/// of clients.
const EXCLUDED_PREFIXES: [&[u8]; 6] =
    [b"envoy-admin", b"stats", b"health", b"stats-health", b"eg-stats-http", b"eg-ready-http"];

/// What the names of listeners that carry the connections of others begin with.
pub const INTERNAL: &[u8] = b"envoy_internal_";

/// What one response shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    pub open: u64,
    /// What is open where nothing may be subtracted.
    pub unsubtracted: u64,
    /// What holds a drain that waits for requests: those in flight, and connections that are not HTTP.
    pub in_use: u64,
    /// Whether less is open than without what was subtracted.
    pub subtracted: bool,
    /// `server.live`: false once health checks are failed. `None` where the response lacks it.
    pub live: Option<bool>,
    pub coverage: StatsCoverage,
    /// None where the response lacks one of its gauges.
    pub total: Option<ServerTotal>,
    pub breakdown: Breakdown,
}

/// Which families of gauges Envoy's `stats_config` lets through. The poll's own connection to the
/// admin interface tells, since it is in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatsCoverage {
    /// Listeners and HTTP: everything can be counted.
    #[default]
    Everything,
    /// No listeners: connections that are not HTTP cannot be seen.
    HttpOnly,
    /// No HTTP: scrapes and health checks look like traffic.
    ListenersOnly,
}

/// Why a response is not a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatsError {
    /// Neither family of gauges is in it.
    NothingVisible,
    /// A gauge's value is not a number.
    BadValue(String),
    /// A hot restart's new process does not show the old one's connections before its first flush.
    ParentUnknown,
}

impl fmt::Display for StatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingVisible => f.write_str(
                "neither listener.admin nor http.admin gauges are in the response; let stats_config \
                 show those whose names begin with \"listener.\", \"http.\" and \"server.\"",
            ),
            Self::ParentUnknown => f.write_str(
                "server.parent_connections is not there yet, and server.hot_restart_epoch is not 0",
            ),
            Self::BadValue(line) => write!(f, "a gauge without a number: {line:?}"),
        }
    }
}

/// The listeners that are not counted.
#[derive(Clone, Copy)]
pub struct Exclusions<'a> {
    /// Names given to `--exclude`: of listeners, and of HTTP stat prefixes.
    pub names: &'a [String],
    /// How the addresses of other listeners end that are not counted.
    pub ignored_suffixes: &'a [&'a str],
}

impl Exclusions<'_> {
    /// Whether a listener of this name is excluded.
    pub fn excludes(&self, name: &[u8]) -> bool {
        let mut suffixes = self.ignored_suffixes.iter();
        // A port ends an address, and no name that is given to a listener.
        let is_address = name.first().is_some_and(|byte| byte.is_ascii_digit() || *byte == b'[');
        self.names(name) || is_address && suffixes.any(|suffix| name.ends_with(suffix.as_bytes()))
    }

    /// Whether the connections of an HTTP stat prefix are not counted.
    pub fn excludes_prefix(&self, prefix: &[u8]) -> bool {
        EXCLUDED_PREFIXES.contains(&prefix) || self.names(prefix)
    }

    fn names(&self, name: &[u8]) -> bool {
        self.names.iter().any(|excluded| excluded.as_bytes() == name)
    }
}

/// Adds up a response that comes in pieces.
pub struct StatsParser<'a> {
    exclusions: Exclusions<'a>,
    lines: Lines,
    live: Option<bool>,
    listeners: ListenerGauges<'a>,
    http: HttpGauges,
    breakdown: Breakdown,
    /// By prefix.
    excluded_http: Vec<(Box<[u8]>, u64)>,
    parent: Option<u64>,
    epoch: u64,
    total: Option<u64>,
    uptime: Option<u64>,
    /// Whether the admin interface's own connection was seen in either family.
    sees_listeners: bool,
    sees_http: bool,
    error: Option<StatsError>,
}

impl<'a> StatsParser<'a> {
    pub fn new(exclusions: Exclusions<'a>) -> Self {
        Self {
            exclusions,
            lines: Lines::default(),
            live: None,
            listeners: ListenerGauges::new(exclusions),
            http: HttpGauges::default(),
            breakdown: Breakdown::default(),
            excluded_http: Vec::new(),
            parent: None,
            epoch: 0,
            total: None,
            uptime: None,
            sees_listeners: false,
            sees_http: false,
            error: None,
        }
    }

    /// The sum, once the whole response was pushed.
    ///
    /// # Errors
    /// When the response is not one to [`REQUEST`], shows neither family of gauges, or lacks the connections
    /// of the old process of a hot restart.
    pub fn finish(mut self) -> Result<Observation, StatsError> {
        self.breakdown.bytes = self.end();
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.epoch > 0 && self.parent.is_none() {
            return Err(StatsError::ParentUnknown);
        }
        let parent = self.parent.unwrap_or(0);
        let coverage = match (self.sees_listeners, self.sees_http) {
            (false, false) => return Err(StatsError::NothingVisible),
            (false, true) => StatsCoverage::HttpOnly,
            (true, false) => StatsCoverage::ListenersOnly,
            (true, true) => StatsCoverage::Everything,
        };
        // No excluded prefix has connections that are silent, so these are not in `excluded`.
        let (mut counted, mut excluded, mut internal) = (0_u64, 0_u64, 0_u64);
        let mut silent = 0_u64;
        let Breakdown { kinds, listeners: largest, prefixes, .. } = &mut self.breakdown;
        let all_http = self.http.sum(prefixes);
        let (listeners, is_unclear) = self.listeners.finish();
        for listener in &listeners {
            let (mut own, mut of_excluded_threads) = (listener.connections(), 0);
            if listener.name.starts_with(INTERNAL) {
                internal = internal.saturating_add(own);
                continue;
            }
            if is_unclear || !listener.has_copies() {
                let of_threads = listener.of_threads - listener.of_excluded_threads;
                counted = counted.saturating_add(of_threads);
                own = listener.cx.unwrap_or(0);
                of_excluded_threads = listener.of_excluded_threads;
            }
            excluded = excluded.saturating_add(of_excluded_threads);
            if self.exclusions.excludes(&listener.name) {
                excluded = excluded.saturating_add(own);
            } else {
                let pre_cx = listener.pre_cx.unwrap_or(0);
                let open = own.saturating_add(pre_cx);
                counted = counted.saturating_add(open);
                silent = silent.saturating_add(pre_cx);
                largest.add(&listener.name, open);
            }
        }
        let scraped = self.excluded_http.iter().fold(0_u64, |sum, (_, cx)| sum.saturating_add(*cx));
        // An excluded or internal listener's connections may be the very ones that an excluded prefix
        // counts; they were not added, so they must not be subtracted either.
        let not_added = excluded.saturating_add(internal);
        let of_listeners = counted.saturating_sub(scraped.saturating_sub(not_added));
        let others = excluded.saturating_sub(scraped).saturating_add(internal);
        let http = all_http.connections.saturating_sub(others);
        let shown = of_listeners.max(http);
        kinds.upgraded = all_http.upgraded.min(http);
        kinds.http = http - kinds.upgraded;
        kinds.silent = silent.min(shown - http);
        kinds.tcp = shown - http - kinds.silent;
        kinds.parent = parent;
        self.breakdown.requests = self.breakdown.requests.map(|_| all_http.requests);
        // Where HTTP connections are those of excluded or internal listeners, all that counts is shown.
        self.breakdown.requests_hidden = all_http.requests_hidden.filter(|_| http > 0);
        let requests = if http > 0 { all_http.in_use } else { 0 };
        let in_use = (shown - http).saturating_add(requests);
        Ok(Observation {
            open: shown.saturating_add(parent),
            unsubtracted: counted.max(http).saturating_add(parent),
            in_use: in_use.saturating_add(parent),
            subtracted: shown < counted.max(all_http.connections),
            live: self.live,
            coverage,
            total: self
                .total
                .zip(self.uptime)
                .map(|(connections, uptime)| ServerTotal { connections, uptime }),
            breakdown: self.breakdown,
        })
    }

    fn reject(&mut self, line: &[u8]) {
        let shown = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
        self.error.get_or_insert(StatsError::BadValue(shown));
    }

    /// What is there twice is added twice, so it must not be subtracted twice.
    fn exclude(&mut self, prefix: &[u8], cx: u64) {
        match self.excluded_http.iter_mut().find(|(known, _)| **known == *prefix) {
            Some((_, least)) => *least = cx.min(*least),
            None => self.excluded_http.push((prefix.into(), cx)),
        }
    }
}

impl ReadLines for StatsParser<'_> {
    fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    fn line(&mut self, line: &[u8]) {
        let Some((gauge, value)) = Gauge::in_line(line) else { return };
        let Some(value) = value else { return self.reject(line) };
        match gauge {
            Gauge::ServerLive => self.live = Some(value != 0 || self.live == Some(true)),
            Gauge::ParentConnections => self.parent = self.parent.max(Some(value)),
            Gauge::HotRestartEpoch => self.epoch = self.epoch.max(value),
            Gauge::TotalConnections => self.total = self.total.max(Some(value)),
            Gauge::Uptime => self.uptime = self.uptime.max(Some(value)),
            Gauge::WorkersStarted => {}
            Gauge::Listener(b"admin") => self.sees_listeners = true,
            Gauge::Http(b"admin") => self.sees_http = true,
            // The admin interface has its connections on the main thread, so that those of a listener
            // called "admin" are on the workers. Without listener filters it has no silent clients.
            Gauge::Listener(b"admin.main_thread") | Gauge::PreConnection(b"admin.main_thread") => {}
            Gauge::Listener(name) => self.listeners.add_cx(name, value),
            Gauge::PreConnection(name) => self.listeners.add_pre_cx(name, value),
            Gauge::Http(prefix) if self.exclusions.excludes_prefix(prefix) => {
                self.exclude(prefix, value)
            }
            Gauge::Http(prefix) => self.http.add_connections(prefix, value),
            // The poll itself is one.
            Gauge::HttpRequests(b"admin") => {
                self.breakdown.requests.get_or_insert(0);
            }
            Gauge::Http3(prefix)
            | Gauge::HttpUpgrades(prefix)
            | Gauge::HttpRequests(prefix)
            | Gauge::HttpBuffered(prefix)
                if prefix == b"admin" || self.exclusions.excludes_prefix(prefix) => {}
            Gauge::Http3(prefix) => self.http.add_http3(prefix, value),
            Gauge::HttpUpgrades(prefix) => self.http.add_upgraded(prefix, value),
            Gauge::HttpRequests(prefix) => {
                self.breakdown.requests.get_or_insert(0);
                self.http.add_requests(prefix, value);
            }
            Gauge::HttpBuffered(prefix) => self.http.add_buffered(prefix, value),
            Gauge::UdpSessions => {
                let sessions = &mut self.breakdown.udp_sessions;
                *sessions = sessions.saturating_add(value);
            }
            Gauge::Pressure => self.breakdown.pressure = Some(value),
        }
    }
}

#[cfg(test)]
mod tests;
