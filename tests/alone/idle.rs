//! Drains with `--injected-resource` at full size: how long an eviction takes, what happens to requests
//! that are sent in the very moment in which Envoy closes their idle connection, and what becomes of
//! streams that last.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::ops::AddAssign;
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fmt, fs};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::prelude::*;
use crate::take_turn;

const IDLE: &str = "HTTP_DOWNSTREAM_CONNECTION_IDLE";
const MAX: &str = "HTTP_DOWNSTREAM_CONNECTION_MAX";
const STREAM_IDLE: &str = "HTTP_DOWNSTREAM_STREAM_IDLE";

/// How often Envoy reads the file by default.
const REFRESH: Duration = Duration::from_secs(1);

#[test]
#[ignore = "half a minute; `just idle` runs it"]
fn an_eviction_with_a_hundred_idle_connections_of_each_kind_ends_within_ten_seconds() {
    let _turn = take_turn();
    // All times are Envoy's defaults.
    for settings in ["", "delayed_close_timeout: 0s,"] {
        let file = PressureFile::new();
        let timers = [(IDLE, Duration::from_secs(1))];
        let envoy = Envoy::builder().reduced_timeouts(&file.path(), 0.01, REFRESH, &timers);
        let envoy = envoy.http_with("http", settings).start();
        let sidecar = file.beside(&envoy, &["--check-interval=1s"]);
        let port = envoy.port("http");
        let http1: Vec<_> = (0..100).map(|_| KeptAlive::open(port)).collect();
        let http2: Vec<_> = (0..100).map(|_| Http2::open(port)).collect();
        let mut hook = sidecar.hook(&["--check-delay=2s"]);
        assert_drain_waits(&sidecar, &mut hook, &envoy, 200);
        assert_exits(&mut hook, 0, NONE_OPEN);
        let took = hook.wait().took;
        println!("eviction     200 idle connections, {settings:?}: {took:?}");
        assert_took("the eviction", took, 5.0..10.0);
        for client in http1 {
            assert!(client.ends_within(Duration::ZERO));
        }
        for client in http2 {
            assert_eq!([client.last_stream(), client.last_stream()], [ANY_STREAM, 1]);
            assert!(client.ends_within(Duration::ZERO));
        }
    }
}

#[test]
#[ignore = "half a minute; `just idle` runs it"]
fn the_pressure_is_taken_away_when_the_outcome_of_a_drain_is_forgotten() {
    let _turn = take_turn();
    let file = PressureFile::new();
    let envoy = Envoy::builder().injected_resource(&file.path()).http("http").start();
    let sidecar = file.beside(&envoy, &[]);
    assert_exits(&mut sidecar.hook(&[]), 0, NONE_OPEN);
    let ended = Instant::now();
    let holds = |value: &str| fs::read_to_string(file.path()).is_ok_and(|text| text == value);
    wait_until("the file to be written", || holds("1.00\n"));
    loop {
        let is_under_pressure = holds("1.00\n");
        if sidecar.status().phase() != ENDED {
            break;
        }
        assert!(is_under_pressure, "after {:?}", ended.elapsed());
        assert!(ended.elapsed() < 2 * PATIENCE, "the outcome still holds");
        // Between two samples.
        thread::sleep(Duration::from_millis(20));
    }
    wait_until("the file to be written again", || holds("0.00\n"));
}

// Requests in the closing moment.

/// A connection on which one request has been answered.
struct Raw {
    socket: TcpStream,
    is_http2: bool,
    /// The last stream that Envoy may process, as a GOAWAY said.
    last_stream: u32,
}

const STREAM: u32 = 3;

enum End {
    Answered,
    /// The connection ended before any of the response had come.
    None,
    /// It ended in the middle of a response.
    Cut,
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

impl Raw {
    fn open(port: u16, is_http2: bool) -> io::Result<Self> {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        let mut raw = Self { socket, is_http2, last_stream: ANY_STREAM };
        if is_http2 {
            raw.socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
            raw.socket.write_all(&frame(4, 0, 0, b""))?;
        }
        Ok(raw)
    }

    fn send(&mut self, stream: u32) -> io::Result<()> {
        if self.is_http2 {
            // END_STREAM and END_HEADERS; HPACK as in `envoy_clients.rs`.
            let request = frame(1, 5, stream, b"\x82\x86\x84\x01\x09localhost");
            self.socket.write_all(&request)
        } else {
            self.socket.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        }
    }

    /// Reads as far as the end of the response on this stream, or of the connection.
    fn receive(&mut self, stream: u32) -> End {
        if !self.is_http2 {
            let (mut buffer, mut length) = ([0; 1024], 0);
            while !buffer[..length].ends_with(b"\r\n\r\nserved") {
                match self.socket.read(&mut buffer[length..]) {
                    Ok(n @ 1..) => length += n,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no end"),
                    _ if length == 0 => return End::None,
                    _ => return End::Cut,
                }
            }
            return End::Answered;
        }
        let mut has_begun = false;
        loop {
            match self.receive_frame() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no end"),
                Err(_) if has_begun => return End::Cut,
                Err(_) => return End::None,
                Ok((of, flags)) if of == stream => {
                    has_begun = true;
                    if flags & 1 == 1 {
                        return End::Answered;
                    }
                }
                Ok(_) if self.last_stream < stream => return End::None,
                Ok(_) => {}
            }
        }
    }

    /// The stream and the flags of a HEADERS or DATA frame, or zeros.
    fn receive_frame(&mut self) -> io::Result<(u32, u8)> {
        let mut head = [0; 9];
        self.socket.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.socket.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match head[3] {
            0 | 1 => Ok((stream, head[4])),
            // RST_STREAM would be a request that Envoy gave up.
            3 => panic!("a reset of stream {stream}: {payload:?}"),
            7 => {
                let last = payload.first_chunk().expect("a stream");
                self.last_stream = u32::from_be_bytes(*last);
                Ok((0, 0))
            }
            _ => Ok((0, 0)),
        }
    }

    /// Whether the client knows, from what has arrived, that it cannot use the connection any more.
    fn knows(&mut self) -> bool {
        loop {
            self.socket.set_nonblocking(true).expect("set a mode");
            let peeked = self.socket.peek(&mut [0]);
            self.socket.set_nonblocking(false).expect("set a mode");
            match peeked {
                Ok(1..) if self.is_http2 => match self.receive_frame() {
                    Ok(_) if self.last_stream == ANY_STREAM => {}
                    _ => return true,
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                _ => return true,
            }
        }
    }
}

/// What became of requests.
#[derive(Clone, Copy, Default)]
struct Tally {
    sent: u32,
    /// The client saw in time that it has to use another connection.
    known: u32,
    answered: u32,
    /// Their connection closed without a byte of a response; the request was sent again on a new
    /// connection, as RFC 9112 (9.3.1) and RFC 9113 (8.7) permit, and answered.
    again: u32,
    lost: u32,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.known += other.known;
        self.answered += other.answered;
        self.again += other.again;
        self.lost += other.lost;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, known, answered, again, lost } = *self;
        let percent = 100.0 * f64::from(again + lost) / f64::from(sent.max(1));
        write!(
            f,
            "{sent} sent: {answered} answered, {again} answered when sent again, {lost} lost "
        )?;
        write!(f, "({percent:.1} % without a second try); {known} not sent, as the client knew")
    }
}

/// Sends a request on each connection at its time.
fn ask(mut plan: Vec<(Instant, Raw)>, port: u16) -> Tally {
    plan.sort_by_key(|(at, _)| *at);
    let mut tally = Tally::default();
    let mut sent = Vec::new();
    for (at, mut client) in plan {
        // The moment itself.
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if client.knows() {
            tally.known += 1;
            continue;
        }
        // An error is one of a connection that has just closed.
        let _closed = client.send(STREAM);
        sent.push(client);
    }
    for mut client in sent {
        tally.sent += 1;
        match client.receive(STREAM) {
            End::Answered => tally.answered += 1,
            End::Cut => tally.lost += 1,
            End::None => {
                let again = Raw::open(port, client.is_http2).and_then(|mut new| {
                    new.send(1)?;
                    Ok(matches!(new.receive(1), End::Answered))
                });
                let counter =
                    if again.is_ok_and(|again| again) { &mut tally.again } else { &mut tally.lost };
                *counter += 1;
            }
        }
    }
    tally
}

const THREADS: usize = 4;

/// From the announcement of a close to the close, as the listener is set.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Requests are sent from this long before a close on, and up to a quarter of it later.
const BEFORE: Duration = Duration::from_millis(40);

/// One drain with so many idle connections, on each of which a request is sent at a random time
/// around its close.
#[track_caller]
fn close_once(settings: &str, delayed: Duration, connections: usize) -> [Tally; 2] {
    let file = PressureFile::new();
    let envoy = Envoy::builder().injected_resource(&file.path());
    let envoy = envoy.http_with("http", &format!("drain_timeout: 1s, {settings}")).start();
    let sidecar = file.beside(&envoy, &[]);
    let port = envoy.port("http");
    let first = Http2::open(port);
    let mut clients: Vec<_> = (0..2 * connections)
        .map(|n| {
            let mut client = Raw::open(port, n % 2 == 0).expect("connect");
            client.send(1).expect("send");
            assert!(matches!(client.receive(1), End::Answered));
            client
        })
        .collect();
    // They are closed together, as each has been idle for long enough.
    thread::sleep(2 * MIN_IDLE);
    let mut hook = sidecar.hook(&[]);
    assert_eq!(first.last_stream(), ANY_STREAM);
    let close = Instant::now() + DRAIN_TIMEOUT;
    let random = RandomState::new();
    let mut number = 0_u64;
    let mut at = |is_http2| {
        // HTTP/1.1: from before the end of the drain time-out to behind the close.
        let delayed = if is_http2 { Duration::ZERO } else { delayed };
        number += 1;
        let part = random.hash_one(number) as f64 / u64::MAX as f64;
        close - BEFORE + (delayed + BEFORE + BEFORE / 4).mul_f64(part)
    };
    let mut plans: Vec<Vec<_>> = (0..THREADS).map(|_| Vec::new()).collect();
    for (n, client) in clients.drain(..).enumerate() {
        plans[n % THREADS].push((at(client.is_http2), client));
    }
    let mut tallies = [Tally::default(); 2];
    thread::scope(|scope| {
        let threads: Vec<_> = plans
            .into_iter()
            .enumerate()
            .map(|(n, plan)| (n % 2, scope.spawn(move || ask(plan, port))))
            .collect();
        for (kind, thread) in threads {
            tallies[kind] += thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
        }
    });
    drop(first);
    assert_exits(&mut hook, 0, NONE_OPEN);
    tallies
}

/// What a listener may say about its closes, and how long Envoy then takes no request any more on a
/// connection of HTTP/1.1 that is open.
const CLOSES: [(&str, Duration); 3] = [
    ("delayed_close_timeout: 0s,", Duration::ZERO),
    ("delayed_close_timeout: 0.1s,", Duration::from_millis(100)),
    ("", Duration::from_secs(1)),
];

#[track_caller]
fn close(closes: &[(&str, Duration)], sent: u32, connections: usize) {
    let _turn = take_turn();
    // Of a connection, the client and Envoy have one each, in this process and another.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("read a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raise a limit");
    for &(settings, delayed) in closes {
        let (mut tallies, mut drains) = ([Tally::default(); 2], 0);
        // Of a hundred, four are sent before the close with Envoy's defaults, and in one drain of fifty none.
        while tallies.iter().any(|tally| tally.sent < sent || tally.answered == 0) {
            drains += 1;
            assert!(drains < 100, "too few are sent in time: {}; {}", tallies[0], tallies[1]);
            for (all, more) in tallies.iter_mut().zip(close_once(settings, delayed, connections)) {
                *all += more;
            }
        }
        let settings = if settings.is_empty() { "Envoy's defaults" } else { settings };
        let [http2, http1] = tallies;
        println!("{settings}, {drains} drains");
        println!("  HTTP/1.1   {http1}");
        println!("  HTTP/2     {http2}");
        for (version, tally) in [("HTTP/1.1", http1), ("HTTP/2", http2)] {
            assert_eq!(tally.lost, 0, "{version}, {settings}");
        }
        // A client that does not try again would lose most of them.
        assert!(delayed < DRAIN_TIMEOUT || http1.again > http1.answered, "{settings}: {http1}");
    }
}

#[test]
fn a_request_that_meets_the_close_of_its_idle_connection_is_answered_at_the_second_try() {
    close(&CLOSES[2..], 50, 100);
}

#[test]
#[ignore = "a minute; `just idle` runs it"]
fn ten_thousand_requests_in_the_closing_moment() {
    let sent = env::var("REQUESTS").map_or(10_000, |sent| sent.parse().expect("a number"));
    // Of each version of HTTP, with each of the settings.
    close(&CLOSES, sent / 6, 400);
}

// Streams that last.

/// A stream of HTTP/2 that goes both ways, as gRPC has it: what its client sends comes back.
struct Stream(Raw);

impl Stream {
    fn open(envoy: &Envoy) -> Self {
        let mut client = Raw::open(envoy.port("http"), true).expect("connect");
        // `:path /hold`, and a length that is never reached, so that the upstream server has the bytes
        // of DATA frames as they are.
        let headers = b"\x82\x86\x01\x09localhost\x04\x05/hold\x0f\x0d\x09999999999";
        client.socket.write_all(&frame(1, 4, 1, headers)).expect("send");
        let mut stream = Self(client);
        envoy.wait_held(1);
        // It echoes its own response, and each byte of that.
        stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n");
        assert!(stream.receives());
        stream
    }

    fn send(&mut self, data: &[u8]) {
        self.0.socket.write_all(&frame(0, 0, 1, data)).expect("send");
    }

    /// Whether the next frame of the stream comes before the end of the connection.
    fn receives(&mut self) -> bool {
        loop {
            match self.0.receive_frame() {
                Ok((1, flags)) => return flags & 1 == 0,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no end"),
                Err(_) => return false,
            }
        }
    }

    fn echoes(&mut self) -> bool {
        self.send(b"x");
        self.receives()
    }
}

/// How long a stream may be silent under pressure.
const MIN_STREAM_IDLE: Duration = Duration::from_secs(3);

#[test]
#[ignore = "half a minute; `just idle` runs it"]
fn silent_web_sockets_are_closed_and_streams_in_use_are_only_asked_to_leave() {
    let _turn = take_turn();
    let file = PressureFile::new();
    let second = Duration::from_secs(1);
    let timers = [(IDLE, second), (MAX, second), (STREAM_IDLE, MIN_STREAM_IDLE)];
    let envoy = Envoy::builder().reduced_timeouts(&file.path(), 0.01, REFRESH, &timers);
    let envoy = envoy.http_with("http", "").max_connection_duration(86_400 * second).start();
    let sidecar = file.beside(&envoy, &[]);
    let port = envoy.port("http");
    let silent: Vec<_> = (0..10).map(|_| web_socket(port)).collect();
    let in_use: Vec<_> = (0..10).map(|_| web_socket(port)).collect();
    let mut streams: Vec<_> = (0..10).map(|_| Stream::open(&envoy)).collect();
    let mut hook = sidecar.hook(&[]);
    let start = Instant::now();
    // From a first read of the file to the last GOAWAY, and far beyond the close of what is silent.
    while start.elapsed() < Duration::from_secs(12) {
        thread::sleep(MIN_STREAM_IDLE / 10);
        assert!(in_use.iter().all(Connection::echoes), "after {:?}", start.elapsed());
        assert!(streams.iter_mut().all(Stream::echoes), "after {:?}", start.elapsed());
    }
    for client in silent {
        assert!(client.ends_within(Duration::ZERO), "a silent WebSocket is open");
    }
    for stream in &streams {
        assert_eq!(
            stream.0.last_stream, 1,
            "its client was not asked to open the next one elsewhere"
        );
    }
    assert_drain_waits(&sidecar, &mut hook, &envoy, 20);
    drop((in_use, streams));
    assert_exits(&mut hook, 0, NONE_OPEN);
}

#[test]
#[ignore = "half a minute; `just idle` runs it"]
fn what_has_a_threshold_of_four_fifths_happens_late_in_a_drain() {
    let _turn = take_turn();
    let file = PressureFile::new();
    let timers = [(IDLE, MIN_IDLE), (STREAM_IDLE, MIN_STREAM_IDLE)];
    let envoy = Envoy::builder().reduced_timeouts(&file.path(), 0.8, MIN_IDLE, &timers);
    let envoy = envoy.http("http").start();
    let sidecar = file.beside(&envoy, &[]);
    let port = envoy.port("http");
    let _clients = (KeptAlive::open(port), Http2::open(port), web_socket(port));
    let mut hook = sidecar.hook(&["--drain-timeout=20s"]);
    assert_exits(&mut hook, 0, NONE_OPEN);
    assert_took("the drain", hook.wait().took, 16.0..20.0);
}
