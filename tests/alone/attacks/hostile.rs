//! Hostile clients. None of them cares about its response.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::support::prelude::*;

/// The port that is attacked, and at which size.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub port: u16,
    pub full: bool,
    /// Counts the connections that are made.
    pub made: &'a AtomicUsize,
}

impl Target<'_> {
    /// A size that depends on how much time there is.
    fn of<T>(self, full: T, small: T) -> T {
        if self.full { full } else { small }
    }

    /// How long an attack lasts, in seconds.
    pub fn lasts(self, full: f32, small: f32) -> Instant {
        Instant::now() + Duration::from_secs_f32(self.of(full, small))
    }

    fn from(self, from: Option<IpAddr>, bytes: impl AsRef<[u8]>) -> Option<Connection> {
        let mut client = Client::of_port(self.port);
        if let Some(from) = from {
            client = client.at_address(from);
        }
        let connection = client.try_connect().ok()?;
        connection.try_send(bytes);
        self.made.fetch_add(1, Ordering::Relaxed);
        Some(connection)
    }

    fn client(self, bytes: impl AsRef<[u8]>) -> Option<Connection> {
        self.from(None, bytes)
    }

    fn many(self, n: usize, bytes: &str) -> Vec<Connection> {
        (0..n).filter_map(|_| self.client(bytes)).collect()
    }

    /// This many requests that wait, the `n`th from this address.
    fn waiters(self, n: usize, address: fn(usize) -> [u8; 4]) -> Vec<Connection> {
        let from = |n| Some(Ipv4Addr::from(address(n)).into());
        (0..n).filter_map(|n| self.from(from(n), SHUTDOWN)).collect()
    }
}

/// An attack lasts its time: no condition is waited for.
fn until(end: Instant) {
    thread::sleep(end.saturating_duration_since(Instant::now()));
}

/// They send nothing.
pub fn silent(target: Target<'_>) {
    let _held = target.many(target.of(10_000, 1_500), "");
    until(target.lasts(8.0, 0.5));
}

/// They send a byte every half second, and connect again when they are disconnected.
pub fn drip(target: Target<'_>) {
    const START: &str = "GET /healthz HTTP/1.1\r\na: ";
    let mut clients = target.many(target.of(2_000, 1_100), START);
    let end = target.lasts(12.0, 1.0);
    while Instant::now() < end {
        // The half second itself.
        thread::sleep(Duration::from_millis(500));
        for client in &mut clients {
            if client.is_waiting() {
                client.try_send(b"x");
            } else if let Some(again) = target.client(START) {
                *client = again;
            }
        }
    }
}

/// They connect and reset, some after a few bytes.
pub fn reset(target: Target<'_>) {
    for n in 0..target.of(5_000, 1_000) {
        let words = ["", "GET", HEALTHZ, SHUTDOWN][n % 4];
        target.client(words).into_iter().for_each(Connection::reset);
    }
}

/// Their requests have no end, until they are disconnected.
pub fn endless(target: Target<'_>) {
    // That many header lines, and as many bytes of anything else.
    const LINES: usize = 200_000;
    let starts = [
        ("GET /healthz HTTP/1.1\r\n", "a: b\r\n"),
        ("GET /healthz HTTP/1.1\r\na: ", "bbbbbb"),
        ("GET /", "aaaaaa"),
        ("", "\r\n\r\n\r\n"),
        ("POST /drain HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n", "xxxxxx"),
        ("GET /shutdown HTTP/1.1\r\n\r\n", "GET /h"),
    ];
    // More at a time would only take the processors that the prober and the kernel need here.
    thread::scope(|scope| {
        for some in starts.chunks(3) {
            scope.spawn(move || {
                for (start, more) in some {
                    let bytes = (*start).to_owned() + &more.repeat(LINES);
                    for _ in 0..target.of(100, 5) {
                        target.client(&bytes);
                    }
                }
            });
        }
    });
}

/// They send these in turn, and stay until all have.
fn send_all(target: Target<'_>, requests: &[Vec<u8>]) {
    for _ in 0..target.of(50, 3) {
        let _all: Vec<_> = requests.iter().map(|request| target.client(request)).collect();
    }
}

/// They announce bodies that do not come, and what this server does not support.
pub fn announce(target: Target<'_>) {
    let lengths = ["99999999999999", "18446744073709551615", "18446744073709551616", "-1", "0x10"];
    let mut fields: Vec<_> = lengths.map(|length| format!("Content-Length: {length}")).into();
    let others = [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 1\r\nContent-Length: 2",
        "Expect: 100-continue\r\nContent-Length: 1000000",
        "Expect: anything",
        "Connection: Upgrade\r\nUpgrade: websocket",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQA",
    ];
    fields.extend(others.map(str::to_owned));
    let requests = ["GET", "POST"].into_iter().flat_map(|method| {
        let request = move |(path, field)| {
            format!("{method} {path} HTTP/1.1\r\n{field}\r\n\r\nffffffffffffffff\r\nhello").into()
        };
        PATHS
            .iter()
            .chain(&["/healthz"])
            .flat_map(|path| fields.iter().map(move |f| (path, f)))
            .map(request)
    });
    send_all(target, &requests.collect::<Vec<_>>());
}

/// They send every version of HTTP, and other protocols.
pub fn other_protocols(target: Target<'_>) {
    let tls: &[u8] = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let others = [tls, http2, b"GET /healthz\r\n", b"SSH-2.0-x\r\n", &[0; 64], &[255; 5000]];
    let mut all: Vec<_> = others.map(<[u8]>::to_vec).into();
    all.extend(
        (0..100)
            .map(|n| format!("GET /healthz HTTP/{}.{}\r\nHost: x\r\n\r\n", n / 10, n % 10).into()),
    );
    send_all(target, &all);
}

/// They send every method to every path.
pub fn every_request(target: Target<'_>) {
    let paths = PATHS.iter().chain(&["/healthz", "/metrics", "/", "*"]);
    let all = METHODS.split(' ').flat_map(|method| {
        paths.clone().map(move |path| format!("{method} {path} HTTP/1.1\r\n\r\n").into())
    });
    send_all(target, &all.collect::<Vec<_>>());
}

/// More wait than may, from three addresses in turn.
pub fn wait(target: Target<'_>) {
    let _held = target.waiters(target.of(2_000, 700), |n| [127, 0, 0, 4 + (n / 600 % 3) as u8]);
    until(target.lasts(10.0, 0.5));
}

/// Each waits from an address of its own.
pub fn wait_from_many(target: Target<'_>) {
    let _held = target.waiters(300, |n| [127, 0, 1 + (n >> 8) as u8, n as u8]);
    until(target.lasts(10.0, 0.5));
}

/// They wait for the end of the drain and disconnect, in every way.
pub fn disconnect(target: Target<'_>) {
    let end = target.lasts(150.0, 1.0);
    let mut n = 0;
    while Instant::now() < end {
        n += 1;
        let Some(client) = target.client(SHUTDOWN) else { continue };
        match n % 8 {
            0 => drop(client),
            1 => client.try_send(b"x"),
            _ => client.reset(),
        }
    }
}

/// They never read, some with next to no room for a response.
pub fn never_read(target: Target<'_>) {
    let metrics = "GET /metrics HTTP/1.1\r\n\r\n";
    let many = HEALTHZ.repeat(200);
    let clients = (0..target.of(2_000, 600)).filter_map(|n| {
        let mut socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
        if n % 4 > 0 {
            socket.set_recv_buffer_size(1).ok()?;
        }
        socket
            .connect(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, target.port)).into())
            .ok()?;
        let _cut_short = socket.write_all([metrics, &many, metrics, SHUTDOWN][n % 4].as_bytes());
        target.made.fetch_add(1, Ordering::Relaxed);
        Some(socket)
    });
    let _held: Vec<_> = clients.collect();
    until(target.lasts(10.0, 0.5));
}
