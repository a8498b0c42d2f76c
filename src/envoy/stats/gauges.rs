//! One line of a response, `name: value`, and what it counts.

/// A longer line is none of Envoy's.
const MAX_LINE: usize = 1 << 16;

/// Splits a body that comes in pieces into lines.
#[derive(Default)]
pub struct Lines {
    /// The beginning of a line whose end is in a later piece.
    partial: Vec<u8>,
    /// The length of the body so far.
    pub bytes: u64,
}

/// Reads a response line by line.
pub trait ReadLines {
    fn lines(&mut self) -> &mut Lines;

    fn line(&mut self, line: &[u8]);

    /// Takes the next piece of the response. False: a line is longer than any of Envoy's.
    #[must_use]
    fn push(&mut self, piece: &[u8]) -> bool {
        let mut lines = std::mem::take(self.lines());
        let is_stats = lines.push(piece, &mut |line| self.line(line));
        *self.lines() = lines;
        is_stats
    }

    /// The whole response was pushed: its last line needs no end. Returns its length.
    fn end(&mut self) -> u64 {
        let lines = std::mem::take(self.lines());
        self.line(&lines.partial);
        lines.bytes
    }
}

impl Lines {
    /// Takes the next piece of the body. False: one of its lines is longer than any of Envoy's, and
    /// the rest need not be read.
    #[must_use]
    fn push(&mut self, mut piece: &[u8], on_line: &mut dyn FnMut(&[u8])) -> bool {
        self.bytes += piece.len() as u64;
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = piece.split_at(end);
            if self.partial.is_empty() {
                on_line(line);
            } else {
                self.partial.extend_from_slice(line);
                on_line(&self.partial);
                self.partial.clear();
            }
            piece = &rest[1..];
        }
        self.partial.extend_from_slice(piece);
        self.partial.len() <= MAX_LINE
    }
}

pub enum Gauge<'a> {
    ServerLive,
    ParentConnections,
    HotRestartEpoch,
    TotalConnections,
    Uptime,
    /// Whether Envoy's workers have started, and its listeners with them.
    WorkersStarted,
    Listener(&'a [u8]),
    /// Connections of a listener whose client has sent nothing yet, so that a listener filter (TLS
    /// inspector, PROXY protocol) still holds them.
    PreConnection(&'a [u8]),
    /// HTTP connections under a stat prefix.
    Http(&'a [u8]),
    /// Those of them that are of HTTP/3.
    Http3(&'a [u8]),
    /// Those of them that were upgraded, and the requests in flight.
    HttpUpgrades(&'a [u8]),
    HttpRequests(&'a [u8]),
    /// Bytes of responses that Envoy has yet to send.
    HttpBuffered(&'a [u8]),
    UdpSessions,
    /// How far the resource of `--injected-resource` is used up, in percent, as Envoy has read it.
    Pressure,
}

impl<'a> Gauge<'a> {
    fn of(name: &'a [u8]) -> Option<Self> {
        if let Some(rest) = name.strip_prefix(b"listener.") {
            return match named(rest, b".downstream_cx_active") {
                Some(listener) => Some(Self::Listener(listener)),
                None => named(rest, b".downstream_pre_cx_active").map(Self::PreConnection),
            };
        }
        if let Some(rest) = name.strip_prefix(b"http.") {
            return named(rest, b".downstream_cx_active")
                .map(Self::Http)
                .or_else(|| named(rest, b".downstream_cx_http3_active").map(Self::Http3))
                .or_else(|| named(rest, b".downstream_cx_upgrades_active").map(Self::HttpUpgrades))
                .or_else(|| named(rest, b".downstream_rq_active").map(Self::HttpRequests))
                .or_else(|| {
                    named(rest, b".downstream_cx_tx_bytes_buffered").map(Self::HttpBuffered)
                });
        }
        if name.starts_with(b"udp.") {
            return name.ends_with(b".downstream_sess_active").then_some(Self::UdpSessions);
        }
        if let Some(rest) = name.strip_prefix(b"overload.") {
            // What is before it is the monitor's name in the bootstrap, which may be another.
            return rest.ends_with(b"injected_resource.pressure").then_some(Self::Pressure);
        }
        Some(match name {
            b"server.live" => Self::ServerLive,
            b"server.parent_connections" => Self::ParentConnections,
            b"server.hot_restart_epoch" => Self::HotRestartEpoch,
            b"server.total_connections" => Self::TotalConnections,
            b"server.uptime" => Self::Uptime,
            b"listener_manager.workers_started" => Self::WorkersStarted,
            _ => return None,
        })
    }

    /// The gauge in a line, and its value where that is a number; none in any other line. A name may
    /// have `: ` in it, a value has not.
    pub fn in_line(line: &'a [u8]) -> Option<(Self, Option<u64>)> {
        let (name, value) = number(line)?;
        Some((Self::of(name)?, value))
    }
}

/// What precedes the suffix, unless that is nothing.
pub fn named<'a>(name: &'a [u8], suffix: &[u8]) -> Option<&'a [u8]> {
    name.strip_suffix(suffix).filter(|name| !name.is_empty())
}

/// The name in a line, and its value where that is a number.
pub fn number(line: &[u8]) -> Option<(&[u8], Option<u64>)> {
    let colon = line.windows(2).rposition(|pair| pair == b": ")?;
    Some((&line[..colon], digits(line[colon + 2..].trim_ascii_end())))
}

/// Digits alone: no sign, no space, no overflow.
fn digits(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| !text.starts_with('+'))?;
    text.parse().ok()
}
