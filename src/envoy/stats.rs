//! How many downstream connections are open, from the answer to one request for Envoy's stats.
//!
//! A listener's gauges cover HTTP, TCP proxies, TLS passthrough and QUIC; connections of
//! scrapers and health checks are told apart by their HTTP stat prefix and taken off again:
//!
//! ```text
//! open = Σ listener.NAME.downstream_cx_active + Σ listener.NAME.downstream_pre_cx_active
//!      − Σ http.PREFIX.downstream_cx_active over the excluded prefixes
//! ```
//!
//! Wherever the answer leaves a doubt, the larger number is taken: a drain that ends too late
//! costs time, one that ends too early cuts connections.

use std::fmt;

/// The path and query of a poll. As text with `usedonly`, since on an Envoy with 10,000 clusters
/// it costs a twentieth of what the Prometheus form does.
pub const POLL: &str = "/stats?type=Gauges&usedonly&filter=\
    %5E(server%5C.live%7C(http%7Clistener)%5C..*%5C.downstream_(pre_)?cx_active)$";

/// An answer longer than this is not one to [`POLL`].
pub const MAX_BODY: usize = 1 << 20;

/// HTTP stat prefixes of Envoy's, Contour's and Envoy Gateway's own listeners, which serve nobody's
/// traffic.
const EXCLUDED_PREFIXES: [&[u8]; 6] =
    [b"envoy-admin", b"stats", b"health", b"stats-health", b"eg-stats-http", b"eg-ready-http"];

/// What one poll showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Downstream connections that are open and counted.
    pub open: u64,
    /// `server.live`: false once health checks are failed. `None` where the answer lacks it.
    pub live: Option<bool>,
    /// Which of the gauges `stats_config` let through.
    pub visible: StatsCoverage,
}

/// Which families of gauges Envoy shows, told by the poll's own connection to the admin
/// interface, which is in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatsCoverage {
    /// Listeners and HTTP: everything can be counted.
    #[default]
    Everything,
    /// No listeners: connections that are not HTTP cannot be seen.
    HttpOnly,
    /// No HTTP: scrapes and health checks cannot be told from traffic.
    ListenersOnly,
}

impl StatsCoverage {
    /// What cannot be seen, and what to add to Envoy's `stats_config` so that it can.
    #[must_use]
    pub const fn explain(self) -> Option<&'static str> {
        match self {
            Self::Everything => None,
            Self::HttpOnly => Some(
                "Envoy's stats_config hides the listeners' gauges: connections that are not HTTP \
                 cannot be seen and will not be waited for; let it show the names that begin with \
                 \"listener.\"",
            ),
            Self::ListenersOnly => Some(
                "Envoy's stats_config hides the HTTP gauges: scrapes and health checks cannot be \
                 told from traffic and hold a drain; let it show the names that begin with \
                 \"http.\"",
            ),
        }
    }
}

/// Why an answer is not a poll.
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
                "neither listener.admin nor http.admin gauges are in the answer; let stats_config \
                 show those whose names begin with \"listener.\", \"http.\" and \"server.\"",
            ),
            Self::BadValue(line) => write!(f, "a gauge without a number: {line:?}"),
        }
    }
}

/// Adds up an answer that comes in pieces.
#[derive(Debug)]
pub struct StatsParser<'a> {
    /// Names given to `--exclude`: of listeners, and of HTTP stat prefixes.
    excluded: &'a [String],
    /// How the names of other listeners end that are not counted.
    own: &'a [&'a str],
    /// The beginning of a line whose end is in a later piece.
    partial: Vec<u8>,
    live: Option<bool>,
    /// By name, which is the order in which Envoy tells them.
    listeners: Vec<Listener>,
    http: u64,
    /// By prefix.
    excluded_http: Vec<(Box<[u8]>, u64)>,
    /// Whether the admin interface's own connection was seen in either family.
    sees_listeners: bool,
    sees_http: bool,
    fault: Option<StatsError>,
}

impl<'a> StatsParser<'a> {
    /// Begins with no connections. `excluded`: names of listeners and of HTTP stat prefixes; `own`:
    /// ends of listeners' names.
    #[must_use]
    pub fn new(excluded: &'a [String], own: &'a [&'a str]) -> Self {
        Self {
            excluded,
            own,
            partial: Vec::new(),
            live: None,
            listeners: Vec::new(),
            http: 0,
            excluded_http: Vec::new(),
            sees_listeners: false,
            sees_http: false,
            fault: None,
        }
    }

    /// Takes the next piece of the answer.
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

    /// The sum, once the whole answer was pushed.
    ///
    /// # Errors
    /// When the answer is not one to [`POLL`], or shows neither family of gauges.
    pub fn finish(mut self) -> Result<Observation, StatsError> {
        let last = std::mem::take(&mut self.partial);
        self.line(&last);
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let visible = match (self.sees_listeners, self.sees_http) {
            (false, false) => return Err(StatsError::NothingVisible),
            (false, true) => StatsCoverage::HttpOnly,
            (true, false) => StatsCoverage::ListenersOnly,
            (true, true) => StatsCoverage::Everything,
        };
        let (mut counted, mut excluded) = (0_u64, 0_u64);
        self.share_out();
        for listener in &self.listeners {
            let own = self.own.iter().any(|end| listener.name.ends_with(end.as_bytes()));
            let is_counted = !own && !self.is_excluded(&listener.name);
            let sum = if is_counted { &mut counted } else { &mut excluded };
            *sum = sum.saturating_add(listener.open());
        }
        // An excluded listener's connections may be the very ones that an excluded prefix
        // counts; they were not added, so they must not be subtracted either.
        let http = self.excluded_http.iter().fold(0_u64, |sum, (_, cx)| sum.saturating_add(*cx));
        let of_listeners = counted.saturating_sub(http.saturating_sub(excluded));
        let open = match visible {
            // Some listeners may be shown all the same.
            StatsCoverage::HttpOnly => self.http.max(of_listeners),
            StatsCoverage::Everything | StatsCoverage::ListenersOnly => of_listeners,
        };
        Ok(Observation { open, live: self.live, visible })
    }

    /// One `name: value`. A name may have `: ` in it, a value has not.
    fn line(&mut self, line: &[u8]) {
        let Some(colon) = line.windows(2).rposition(|pair| pair == b": ") else { return };
        let (name, value) = (&line[..colon], line[colon + 2..].trim_ascii_end());
        let Some(gauge) = Gauge::of(name) else { return };
        let Some(value) = number(value) else { return self.refuse(line) };
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

    fn refuse(&mut self, line: &[u8]) {
        let shown = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
        self.fault.get_or_insert(StatsError::BadValue(shown));
    }

    /// What is there twice is added twice, so it must not be subtracted twice.
    fn exclude(&mut self, prefix: &[u8], cx: u64) {
        match self.excluded_http.iter_mut().find(|(known, _)| **known == *prefix) {
            Some((_, least)) => *least = cx.min(*least),
            None => self.excluded_http.push((prefix.into(), cx)),
        }
    }

    fn listener(&mut self, name: &[u8]) -> &mut Listener {
        let index = self.position(name).unwrap_or_else(|index| {
            self.listeners
                .insert(index, Listener { name: name.into(), cx: 0, pre_cx: None, shares: 0 });
            index
        });
        &mut self.listeners[index]
    }

    /// Where a listener is among the others, or belongs.
    fn position(&self, name: &[u8]) -> Result<usize, usize> {
        self.listeners.binary_search_by(|listener| (*listener.name).cmp(name))
    }

    /// Moves the threads' shares from their own names to their listeners'.
    fn share_out(&mut self) {
        let mut shares = Vec::new();
        self.listeners.retain(|listener| {
            // A listener has a pre_cx gauge, a share has not.
            let is_share = listener.pre_cx.is_none() && of_a_thread(&listener.name).is_some();
            if is_share {
                shares.push((listener.name.clone(), listener.cx));
            }
            !is_share
        });
        for (name, cx) in shares {
            let listener = of_a_thread(&name).unwrap_or(&name);
            // Without its listener, it is not a share but a listener of that name.
            let whose = if listener == b"admin" || self.position(listener).is_ok() {
                listener
            } else {
                &name
            };
            let shares = &mut self.listener(whose).shares;
            *shares = shares.saturating_add(cx);
        }
    }

    fn is_excluded(&self, name: &[u8]) -> bool {
        self.excluded.iter().any(|excluded| excluded.as_bytes() == name)
    }
}

/// What a line counts.
enum Gauge<'a> {
    ServerLive,
    /// Connections of a listener.
    Listener(&'a [u8]),
    /// Connections of a listener whose client has not spoken yet, so that a listener filter (TLS
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
#[derive(Debug)]
struct Listener {
    name: Box<[u8]>,
    cx: u64,
    /// Clients that have not spoken yet.
    pre_cx: Option<u64>,
    /// `cx` once more, as the sum of the threads' shares.
    shares: u64,
}

impl Listener {
    /// Envoy does not read its gauges in one instant. It reads `cx`, then `pre_cx`, then the
    /// shares, so a client that speaks in between is missing from the first two (measured: once in
    /// a million polls), and found in the third.
    fn open(&self) -> u64 {
        self.cx.max(self.shares).saturating_add(self.pre_cx.unwrap_or(0))
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

/// The listener of which this gauge is a thread's share: `NAME.worker_0`, `NAME.main_thread`.
fn of_a_thread(gauge: &[u8]) -> Option<&[u8]> {
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
