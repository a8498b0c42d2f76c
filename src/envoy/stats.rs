//! How many downstream connections are open, from the response to one request for Envoy's stats.
//!
//! A listener's gauges cover HTTP, TCP proxies, TLS passthrough and QUIC; connections of
//! scrapers and health checks are known by their HTTP stat prefix and taken off again:
//!
//! ```text
//! open = Σ listener.NAME.downstream_cx_active + Σ listener.NAME.downstream_pre_cx_active
//!      − Σ http.PREFIX.downstream_cx_active over the excluded prefixes
//! ```
//!
//! Wherever the response leaves a doubt, the larger number is taken: a drain that ends too late
//! costs time, one that ends too early cuts connections.

use std::fmt;

/// The path and query of a poll. As text with `usedonly`, since on an Envoy with 10,000 clusters
/// it costs a twentieth of what the Prometheus form does.
pub const REQUEST: &str = "/stats?type=Gauges&usedonly&filter=\
    %5E(server%5C.live%7C(http%7Clistener)%5C..*%5C.downstream_(pre_)?cx_active)$";

/// A response longer than this is not one to [`REQUEST`].
pub const MAX_BODY: usize = 1 << 20;

/// HTTP stat prefixes of Envoy's, Contour's and Envoy Gateway's own listeners, which serve no traffic
/// of clients.
const EXCLUDED_PREFIXES: [&[u8]; 6] =
    [b"envoy-admin", b"stats", b"health", b"stats-health", b"eg-stats-http", b"eg-ready-http"];

/// What one response shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    pub open: u64,
    /// `server.live`: false once health checks are failed. `None` where the response lacks it.
    pub live: Option<bool>,
    pub coverage: StatsCoverage,
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
}

impl fmt::Display for StatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingVisible => f.write_str(
                "neither listener.admin nor http.admin gauges are in the response; let stats_config \
                 show those whose names begin with \"listener.\", \"http.\" and \"server.\"",
            ),
            Self::BadValue(line) => write!(f, "a gauge without a number: {line:?}"),
        }
    }
}

/// Adds up a response that comes in pieces.
pub struct StatsParser<'a> {
    /// Names given to `--exclude`: of listeners, and of HTTP stat prefixes.
    excluded: &'a [String],
    /// How the names of other listeners end that are not counted.
    ignored_suffixes: &'a [&'a str],
    /// The beginning of a line whose end is in a later piece.
    partial: Vec<u8>,
    live: Option<bool>,
    /// By name, which is the order in which Envoy renders them.
    listeners: Vec<ListenerGauges>,
    http: u64,
    /// By prefix.
    excluded_http: Vec<(Box<[u8]>, u64)>,
    /// Whether the admin interface's own connection was seen in either family.
    sees_listeners: bool,
    sees_http: bool,
    error: Option<StatsError>,
}

impl<'a> StatsParser<'a> {
    /// `excluded`: names of listeners and of HTTP stat prefixes; `ignored_suffixes`: ends of
    /// listeners' names.
    pub fn new(excluded: &'a [String], ignored_suffixes: &'a [&'a str]) -> Self {
        Self {
            excluded,
            ignored_suffixes,
            partial: Vec::new(),
            live: None,
            listeners: Vec::new(),
            http: 0,
            excluded_http: Vec::new(),
            sees_listeners: false,
            sees_http: false,
            error: None,
        }
    }

    /// Takes the next piece of the response.
    pub fn push(&mut self, mut piece: &[u8]) {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = piece.split_at(end);
            if self.partial.is_empty() {
                self.line(line);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole);
            }
            piece = &rest[1..];
        }
        self.partial.extend_from_slice(piece);
    }

    /// The sum, once the whole response was pushed.
    ///
    /// # Errors
    /// When the response is not one to [`REQUEST`], or shows neither family of gauges.
    pub fn finish(mut self) -> Result<Observation, StatsError> {
        let last = std::mem::take(&mut self.partial);
        self.line(&last);
        if let Some(error) = self.error {
            return Err(error);
        }
        let coverage = match (self.sees_listeners, self.sees_http) {
            (false, false) => return Err(StatsError::NothingVisible),
            (false, true) => StatsCoverage::HttpOnly,
            (true, false) => StatsCoverage::ListenersOnly,
            (true, true) => StatsCoverage::Everything,
        };
        let (mut counted, mut excluded) = (0_u64, 0_u64);
        self.merge_worker_gauges();
        for listener in &self.listeners {
            let mut suffixes = self.ignored_suffixes.iter();
            let is_ignored = suffixes.any(|suffix| listener.name.ends_with(suffix.as_bytes()));
            let is_counted = !is_ignored && !self.is_excluded(&listener.name);
            let sum = if is_counted { &mut counted } else { &mut excluded };
            *sum = sum.saturating_add(listener.open());
        }
        // An excluded listener's connections may be the very ones that an excluded prefix
        // counts; they were not added, so they must not be subtracted either.
        let http = self.excluded_http.iter().fold(0_u64, |sum, (_, cx)| sum.saturating_add(*cx));
        let of_listeners = counted.saturating_sub(http.saturating_sub(excluded));
        let open = match coverage {
            // Some listeners may be shown all the same.
            StatsCoverage::HttpOnly => self.http.max(of_listeners),
            StatsCoverage::Everything | StatsCoverage::ListenersOnly => of_listeners,
        };
        Ok(Observation { open, live: self.live, coverage })
    }

    /// One `name: value`. A name may have `: ` in it, a value has not.
    fn line(&mut self, line: &[u8]) {
        let Some(colon) = line.windows(2).rposition(|pair| pair == b": ") else { return };
        let (name, value) = (&line[..colon], line[colon + 2..].trim_ascii_end());
        let Some(gauge) = Gauge::of(name) else { return };
        let Some(value) = number(value) else { return self.reject(line) };
        let sum = match gauge {
            Gauge::ServerLive => return self.live = Some(value != 0 || self.live == Some(true)),
            Gauge::Listener(b"admin") => return self.sees_listeners = true,
            Gauge::Http(b"admin") => return self.sees_http = true,
            Gauge::Listener(name) | Gauge::PreConnection(name) if !serves_traffic(name) => return,
            Gauge::Listener(name) => &mut self.listener(name).cx,
            Gauge::PreConnection(name) => self.listener(name).pre_cx.get_or_insert(0),
            Gauge::Http(prefix)
                if EXCLUDED_PREFIXES.contains(&prefix) || self.is_excluded(prefix) =>
            {
                return self.exclude(prefix, value);
            }
            Gauge::Http(_) => &mut self.http,
        };
        *sum = sum.saturating_add(value);
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

    fn listener(&mut self, name: &[u8]) -> &mut ListenerGauges {
        let index = self.position(name).unwrap_or_else(|index| {
            self.listeners.insert(index, ListenerGauges::new(name));
            index
        });
        &mut self.listeners[index]
    }

    /// Where a listener is among the others, or belongs.
    fn position(&self, name: &[u8]) -> Result<usize, usize> {
        self.listeners.binary_search_by(|listener| (*listener.name).cmp(name))
    }

    /// Moves the threads' own copies of a gauge from their names to their listeners'.
    fn merge_worker_gauges(&mut self) {
        let mut copies = Vec::new();
        self.listeners.retain(|listener| {
            // A listener has a pre_cx gauge, a thread's copy has not.
            let is_copy = listener.pre_cx.is_none() && worker_parent(&listener.name).is_some();
            if is_copy {
                copies.push((listener.name.clone(), listener.cx));
            }
            !is_copy
        });
        for (name, cx) in copies {
            let parent = worker_parent(&name).unwrap_or(&name);
            // Without its listener, it is not a copy but a listener of that name.
            let is_known = parent == b"admin" || self.position(parent).is_ok();
            let of_workers = &mut self.listener(if is_known { parent } else { &name }).of_workers;
            *of_workers = of_workers.saturating_add(cx);
        }
    }

    fn is_excluded(&self, name: &[u8]) -> bool {
        self.excluded.iter().any(|excluded| excluded.as_bytes() == name)
    }
}

enum Gauge<'a> {
    ServerLive,
    Listener(&'a [u8]),
    /// Connections of a listener whose client has sent nothing yet, so that a listener filter (TLS
    /// inspector, PROXY protocol) still holds them.
    PreConnection(&'a [u8]),
    /// HTTP connections under a stat prefix.
    Http(&'a [u8]),
}

impl<'a> Gauge<'a> {
    fn of(name: &'a [u8]) -> Option<Self> {
        let between = |prefix: &[u8], suffix: &[u8]| {
            name.strip_prefix(prefix)?.strip_suffix(suffix).filter(|name| !name.is_empty())
        };
        if name == b"server.live" {
            return Some(Self::ServerLive);
        }
        between(b"listener.", b".downstream_cx_active")
            .map(Self::Listener)
            .or_else(|| {
                between(b"listener.", b".downstream_pre_cx_active").map(Self::PreConnection)
            })
            .or_else(|| between(b"http.", b".downstream_cx_active").map(Self::Http))
    }
}

/// The gauges under one listener's name.
struct ListenerGauges {
    name: Box<[u8]>,
    cx: u64,
    /// Clients that have sent nothing yet.
    pre_cx: Option<u64>,
    /// `cx` once more, as the sum of what each worker has.
    of_workers: u64,
}

impl ListenerGauges {
    fn new(name: &[u8]) -> Self {
        Self { name: name.into(), cx: 0, pre_cx: None, of_workers: 0 }
    }

    /// Envoy does not read its gauges in one instant. It reads `cx`, then `pre_cx`, then the
    /// workers' copies, so a client that sends its first byte in between is missing from the first
    /// two (measured: once in a million polls), and found in the third.
    fn open(&self) -> u64 {
        self.cx.max(self.of_workers).saturating_add(self.pre_cx.unwrap_or(0))
    }
}

/// Whether a listener serves traffic. The admin interface does not, and has its connections on the
/// main thread, so that those of a listener that is called "admin" are on the workers. An internal
/// listener's come through one that is counted.
fn serves_traffic(listener: &[u8]) -> bool {
    listener != b"admin"
        && listener != b"admin.main_thread"
        && !listener.starts_with(b"envoy_internal_")
}

/// The listener of which this gauge is a thread's copy: `NAME.worker_0`, `NAME.main_thread`.
fn worker_parent(gauge: &[u8]) -> Option<&[u8]> {
    let dot = gauge.iter().rposition(|byte| *byte == b'.')?;
    let (listener, thread) = (&gauge[..dot], &gauge[dot + 1..]);
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let is_thread =
        thread == b"main_thread" || thread.strip_prefix(b"worker_").is_some_and(is_number);
    is_thread.then_some(listener)
}

/// Digits alone: no sign, no space, no overflow.
fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| !text.starts_with('+'))?;
    text.parse().ok()
}

#[cfg(test)]
mod tests;
