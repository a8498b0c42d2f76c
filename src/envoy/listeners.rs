//! Which listeners hide their gauges, from `GET /listeners` and one request for all listeners'
//! gauges.
//!
//! A `stats_matcher` of a listener, or an exclusion in `stats_config` of one name, leaves a listener
//! out of every poll, and nothing in the poll shows it. `/listeners` names each with its address, and
//! a gauge is named by the address, with `_` for each `:`, or by a `stat_prefix`, which `/listeners`
//! does not have:
//!
//! ```text
//! ingress_http::0.0.0.0:8080        listener.0.0.0.0_8080.downstream_cx_active: 0
//! ingress_tls::[::1]:8443           listener.[__1]_8443.downstream_cx_active: 0
//! internal_tls::10.0.0.1:9443       listener.tls.downstream_cx_active: 0
//! ```
//!
//! So addresses are matched first. Listeners that are left over are hidden if no gauges are; if fewer
//! gauges are left over than listeners, some of these are hidden, or share a `stat_prefix`; else each
//! may have one of these gauges. A gauge that looks like another address may be that of a removed
//! listener, whose connections are still open: it cannot stand for a listed one, but makes it
//! uncertain.
//!
//! Listeners that are not counted need a gauge as well: by that it is known which connections are not
//! to be subtracted. An internal one's is `listener.envoy_internal_NAME…`, if it has no `stat_prefix`.
//!
//! The same response shows which other stats are hidden of single names, for a drain that depends on them:
//! used or not, each listener has `downstream_cx_total` beside its gauges, and each HTTP stat prefix has
//! all of its stats.

use super::HiddenStats;
use super::stats::{
    Exclusions, Gauge, INTERNAL, Lines, Listener, ListenerGauges, ReadLines, named, number,
    thread_parent,
};
use crate::cli::options::{Options, WaitFor};

/// The path of all listeners, as text: `NAME::ADDRESS` a line, several for one with several addresses.
pub const LISTENERS: &str = "/listeners";

/// The path and query of all listeners' gauges, used or not. It costs Envoy what 1.7 polls do
/// (measured with 10,000 clusters).
pub const GAUGES: &str = "/stats?type=Gauges&filter=\
    %5E(listener_manager%5C.workers_started%7Clistener%5C..*%5C.downstream_(pre_)?cx_active%7C\
    http%5C..*%5C.downstream_cx_(active%7Ctx_bytes_buffered))$";

/// The same with the counters that a quiet period depends on. It costs what 4 polls do.
pub const GAUGES_AND_COUNTERS: &str = "/stats?filter=\
    %5E(listener_manager%5C.workers_started%7Clistener%5C..*%5C.downstream_((pre_)?cx_active%7Ccx_total)%7C\
    http%5C..*%5C.downstream_(cx_(active%7Ctx_bytes_buffered)%7Crq_total))$";

/// A longer address is none of Envoy's: `sun_path` has 108 bytes.
const MAX_ADDRESS: usize = 128;

/// A listener of `/listeners`.
struct Listed {
    name: Vec<u8>,
    has_gauge: bool,
    /// Whether it is excluded or internal.
    is_uncounted: bool,
}

/// What is shown of an HTTP stat prefix.
#[derive(Default)]
struct Prefix {
    name: Vec<u8>,
    has_connections: bool,
    has_buffered: bool,
    has_requests: bool,
}

/// All listeners' gauges, and what else a drain depends on.
pub struct GaugeNames<'a> {
    exclusions: Exclusions<'a>,
    counts_arrivals: bool,
    waits_for_requests: bool,
    lines: Lines,
    gauges: ListenerGauges<'a>,
    /// Of the prefixes that are counted.
    prefixes: Vec<Prefix>,
    /// Listeners with a counter of their connections.
    counted: Vec<Vec<u8>>,
    sees_listeners: bool,
    /// Without workers no listener has gauges yet.
    workers_started: bool,
}

impl<'a> GaugeNames<'a> {
    /// `options`: the drain's, or the sidecar's own.
    pub fn new(exclusions: Exclusions<'a>, options: &Options) -> Self {
        Self {
            exclusions,
            counts_arrivals: !options.quiet_period.is_zero(),
            waits_for_requests: options.wait_for == WaitFor::Requests,
            lines: Lines::default(),
            gauges: ListenerGauges::new(exclusions),
            prefixes: Vec::new(),
            counted: Vec::new(),
            sees_listeners: false,
            workers_started: true,
        }
    }

    /// What is to be requested.
    pub fn path(&self) -> &'static str {
        if self.counts_arrivals { GAUGES_AND_COUNTERS } else { GAUGES }
    }

    /// Whether Envoy is starting: its static listeners are listed, and none listens or has a gauge yet
    /// (measured).
    pub fn is_starting(&self) -> bool {
        !self.workers_started
    }

    /// The listeners of the body of [`LISTENERS`] that have no gauge, once the whole response was
    /// pushed. None where no listener's gauges are visible, which each poll shows by its coverage.
    ///
    /// # Errors
    /// A clause that fits behind the request: the body is not a list of listeners, or Envoy has not
    /// started them.
    pub fn hidden_of(mut self, body: &[u8]) -> Result<HiddenStats, &'static str> {
        self.end();
        if !self.workers_started {
            return Err("Envoy is starting, and its listeners have no gauges yet");
        }
        let nothing = ListenerGauges::new(self.exclusions);
        let (listeners, _) = std::mem::replace(&mut self.gauges, nothing).finish();
        let (unsent, mut arrivals) = (self.unsent(), self.hides_arrivals(&listeners));
        // Sorted, with whether a listener has it.
        let (internal, mut gauges): (Vec<_>, Vec<_>) = listeners
            .iter()
            // Workers' copies of the admin interface's gauge are a listener's of that name.
            .filter(|gauge| gauge.cx.is_some() || *gauge.name == *b"admin")
            .map(|gauge| (&*gauge.name, false))
            .partition(|(name, _)| name.starts_with(INTERNAL));
        let mut listed: Vec<Listed> = Vec::new();
        for line in body.split(|byte| *byte == b'\n') {
            // Part of a name may be before it, if that has a line break in it.
            let Some((name, address)) = split(line) else { continue };
            let is_internal = address.starts_with(b"envoy://");
            // Not by the listener's own name, which is none in the stats and may be that of an excluded HTTP
            // stat prefix.
            let is_uncounted = is_internal || self.exclusions.excludes(&gauge_name(address));
            let of_internal = is_internal.then(|| [INTERNAL, &gauge_name(name)].concat());
            let has_gauge = match_gauge(line, &mut gauges)
                || internal.iter().any(|(gauge, _)| Some(*gauge) == of_internal.as_deref());
            match listed.last_mut() {
                // Only the first of its addresses names its gauge.
                Some(last) if last.name == name => last.has_gauge |= has_gauge,
                _ => listed.push(Listed { name: name.to_vec(), has_gauge, is_uncounted }),
            }
        }
        if listed.is_empty() && !body.trim_ascii().is_empty() {
            return Err("the response is not a list of listeners");
        }
        let (mut left, mut prefixes) = (0, 0);
        for (name, _) in gauges.iter().filter(|(_, is_matched)| !is_matched) {
            left += 1;
            prefixes += usize::from(port_0(name).is_none());
        }
        listed.retain(|listener| !listener.has_gauge);
        if !self.sees_listeners || listed.len() <= prefixes {
            return Ok(HiddenStats { unsent, arrivals, ..HiddenStats::default() });
        }
        arrivals |= self.counts_arrivals;
        let named = |is_uncounted| {
            let listed = listed.iter().filter(|listener| listener.is_uncounted == is_uncounted);
            listed.map(|listener| String::from_utf8_lossy(&listener.name).into_owned()).collect()
        };
        let (names, uncounted) = (named(false), named(true));
        Ok(HiddenStats { listeners: names, certain: left == 0, uncounted, unsent, arrivals })
    }
}

impl ReadLines for GaugeNames<'_> {
    fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    fn line(&mut self, line: &[u8]) {
        match Gauge::in_line(line) {
            Some((Gauge::Http(prefix), _)) => {
                self.prefix(prefix, |known| &mut known.has_connections)
            }
            Some((Gauge::HttpBuffered(prefix), _)) => {
                self.prefix(prefix, |known| &mut known.has_buffered);
            }
            None => self.counter(line),
            Some((Gauge::Listener(b"admin"), _)) => self.sees_listeners = true,
            Some((Gauge::Listener(b"admin.main_thread") | Gauge::PreConnection(b"admin"), _)) => {}
            Some((Gauge::Listener(name), _)) => self.gauges.add_cx(name, 0),
            Some((Gauge::PreConnection(name), _)) => self.gauges.add_pre_cx(name, 0),
            Some((Gauge::WorkersStarted, value)) => self.workers_started = value != Some(0),
            Some(_) => {}
        }
    }
}

impl GaugeNames<'_> {
    /// A prefix that does not show what is still to be sent, where requests are waited for.
    fn unsent(&self) -> Option<String> {
        let lacks_gauge = |prefix: &&Prefix| prefix.has_connections && !prefix.has_buffered;
        let first = self.prefixes.iter().filter(|_| self.waits_for_requests).find(lacks_gauge);
        first.map(|prefix| String::from_utf8_lossy(&prefix.name).into_owned())
    }

    /// Whether a counter is missing that the quiet period depends on.
    fn hides_arrivals(&self, gauges: &[Listener]) -> bool {
        // Also of listeners that are not counted: by it theirs are known from those of others.
        let lacks_counter = |gauge: &Listener| {
            gauge.cx.is_some() && !self.counted.iter().any(|counted| **counted == *gauge.name)
        };
        let lacks_requests = |prefix: &Prefix| prefix.has_connections && !prefix.has_requests;
        let requests = self.waits_for_requests && self.prefixes.iter().any(lacks_requests);
        self.counts_arrivals && (requests || gauges.iter().any(lacks_counter))
    }

    fn counter(&mut self, line: &[u8]) {
        let Some((name, _)) = number(line) else { return };
        let of = |family: &[u8], suffix| named(name.strip_prefix(family)?, suffix);
        // Each of a listener's threads has one too.
        let listener = of(b"listener.", b".downstream_cx_total");
        if let Some(listener) = listener.filter(|name| thread_parent(name).is_none()) {
            self.counted.push(listener.to_vec());
        }
        if let Some(prefix) = of(b"http.", b".downstream_rq_total") {
            self.prefix(prefix, |known| &mut known.has_requests);
        }
    }

    /// Notes that a prefix has this stat. The lines are sorted, so that it is mostly the latest one.
    fn prefix(&mut self, name: &[u8], stat: fn(&mut Prefix) -> &mut bool) {
        if name == b"admin" || self.exclusions.excludes_prefix(name) {
            return;
        }
        let known = self.prefixes.iter().rposition(|prefix| prefix.name == name);
        let index = known.unwrap_or_else(|| {
            self.prefixes.push(Prefix { name: name.to_vec(), ..Prefix::default() });
            self.prefixes.len() - 1
        });
        *stat(&mut self.prefixes[index]) = true;
    }
}

/// Name and address of a listener: `[::1]:80` has colons in it, and a name may.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let bracket = line.windows(3).rposition(|text| text == b"::[");
    let is_ipv6 = |at: &usize| line[at + 3..].windows(2).any(|text| text == b"]:");
    let at = bracket.filter(is_ipv6).or_else(|| line.windows(2).rposition(|text| text == b"::"))?;
    Some((&line[..at], &line[at + 2..]))
}

/// Marks the gauge of the listener in this line, whatever behind a `::` is its address. Whether it
/// has one. If its port was 0 it has another now, and its gauge has not.
fn match_gauge(line: &[u8], gauges: &mut [(&[u8], bool)]) -> bool {
    let start = line.len().saturating_sub(MAX_ADDRESS);
    for at in (start + 2..line.len()).rev().filter(|at| line[at - 2..*at] == *b"::") {
        let name = gauge_name(&line[at..]);
        let other = port_0(&name);
        for name in [Some(name), other].into_iter().flatten() {
            if let Ok(index) = gauges.binary_search_by(|(gauge, _)| (*gauge).cmp(&name)) {
                gauges[index].1 = true;
                return true;
            }
        }
    }
    false
}

/// The name that Envoy gives to the gauges of a listener at this address.
fn gauge_name(address: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(address.len());
    let mut rest = address;
    while let Some((first, others)) = rest.split_first() {
        rest = others;
        if *first != b':' {
            name.push(*first);
            continue;
        }
        name.push(b'_');
        // `://` and `:/` become one.
        for _ in 0..2 {
            rest = rest.strip_prefix(b"/").unwrap_or(rest);
        }
    }
    name
}

/// The name with port 0, if it is that of an IP address and a port.
fn port_0(gauge: &[u8]) -> Option<Vec<u8>> {
    let at = gauge.iter().rposition(|byte| *byte == b'_')? + 1;
    let (host, port) = (&gauge[..at], &gauge[at..]);
    let is_ip = host.starts_with(b"[") || host.iter().filter(|byte| **byte == b'.').count() == 3;
    let in_ip = |byte: &u8| byte.is_ascii_hexdigit() || b"._[]".contains(byte);
    (is_ip && host.iter().all(in_ip) && port.iter().all(u8::is_ascii_digit))
        .then(|| [host, b"0"].concat())
}

#[cfg(test)]
mod tests;
