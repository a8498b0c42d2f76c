//! A scripted admin interface, which injects every fault that a real Envoy seldom shows.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::Socket;
use tempfile::TempDir;

use super::client::read_before;
use super::net::{Address, Server};
use super::{PATIENCE, Timeline, lock, temp_dir, wait_for};

/// The gauge that [`FakeAdmin::set_open`] sets.
pub const OPEN: &str = "listener.0.0.0.0_8080.downstream_cx_active";

/// The state that Envoy returns on `/ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In service.
    Live,
    /// Its health checks have been failed.
    Draining,
    /// It has just started.
    Initializing,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `/ready`
    Ready,
    /// `/stats`, as it is polled: with `usedonly`.
    Stats,
    /// `/stats` with unused gauges too, which is compared with the listing.
    AllGauges,
    /// `/stats`, of counters: new connections, which this Envoy does not show unless they are set.
    Accepted,
    /// `/healthcheck/fail`
    Fail,
    /// `/healthcheck/ok`
    Ok,
    /// `/drain_listeners`, with any query.
    Listeners,
    /// `/listeners`, which lists them.
    Listing,
    /// Anything else: a 404, also after a redirect.
    Other,
}

/// What a request gets instead of its response. It does not change the state.
#[derive(Clone, Debug)]
pub enum Fault {
    /// No response, until the client disconnects.
    Silent,
    /// The end of the connection.
    Close,
    /// A head, half a body and a reset.
    ResetMidBody,
    /// Another status.
    Status(u16),
    /// A 302 to elsewhere on this server.
    Redirect,
    /// Bytes that are not text.
    Garbage,
    /// The greeting of another protocol.
    NotHttp,
    /// The response with a `content-length` that it does not reach.
    Truncated,
    /// The response, ending in mid-chunk.
    TruncatedChunk,
    /// A body without end.
    Endless,
    /// A header without end.
    EndlessHead,
    /// The response, this long after the request.
    Late(Duration),
    /// The response, one byte at a time.
    Slow {
        /// Between two bytes.
        every: Duration,
    },
    /// These bytes, and the end of the connection.
    Raw(Vec<u8>),
    /// A 200 with this body.
    Body(String),
}

#[derive(Debug)]
struct Script {
    state: State,
    stats: BTreeMap<String, u64>,
    /// How often it is still injected; `None` is without end.
    faults: HashMap<Route, (Option<usize>, Fault)>,
}

#[derive(Debug)]
enum Listening {
    Serving(#[expect(dead_code, reason = "held for its drop")] Server),
    /// A port is kept, so that no other process gets it meanwhile.
    Refusing(#[expect(dead_code, reason = "held for its drop")] Option<Socket>),
    Full(#[expect(dead_code, reason = "held for its drop")] Vec<Socket>),
}

/// The scripted admin interface. Dropping it ends all its threads, and fails the test if one of
/// them has panicked.
#[derive(Debug)]
pub struct FakeAdmin {
    address: Address,
    script: Arc<Mutex<Script>>,
    requests: Timeline<(Route, String)>,
    listening: Listening,
    _dir: TempDir,
}

impl AsRef<Address> for FakeAdmin {
    fn as_ref(&self) -> &Address {
        self.admin()
    }
}

impl FakeAdmin {
    /// On a Unix socket in a temporary directory of its own.
    pub fn unix() -> Self {
        let dir = temp_dir("admin");
        Self::start(Address::Unix(dir.path().join("admin.sock")), dir)
    }

    /// On a free port of 127.0.0.1.
    pub fn tcp() -> Self {
        Self::start(Address::loopback(), temp_dir("admin"))
    }

    fn start(address: Address, dir: TempDir) -> Self {
        let stats = [
            (OPEN, 0),
            ("http.admin.downstream_cx_active", 1),
            ("listener.admin.downstream_cx_active", 1),
            ("listener.admin.downstream_pre_cx_active", 0),
            ("listener.admin.main_thread.downstream_cx_active", 1),
            ("server.live", 1),
        ];
        let script = Script {
            state: State::Live,
            stats: stats.map(|(name, n)| (name.to_owned(), n)).into(),
            faults: HashMap::new(),
        };
        let mut admin = Self {
            address,
            script: Arc::new(Mutex::new(script)),
            requests: Timeline::default(),
            listening: Listening::Refusing(None),
            _dir: dir,
        };
        admin.come_back();
        admin
    }

    /// As `--admin-address` takes it.
    pub fn admin_address(&self) -> String {
        self.address.to_string()
    }

    pub fn admin(&self) -> &Address {
        &self.address
    }

    /// What `/ready` returns.
    pub fn state(&self) -> State {
        lock(&self.script).state
    }

    /// Changes what `/ready` and `server.live` show, as an Envoy that restarts would.
    pub fn set_state(&self, state: State) {
        lock(&self.script).set_state(state);
    }

    /// How many connections the one listener has open.
    pub fn set_open(&self, n: u64) {
        self.set_stat(OPEN, n);
    }

    /// Adds a line to the stats, or changes it.
    pub fn set_stat(&self, name: &str, value: u64) {
        lock(&self.script).stats.insert(name.to_owned(), value);
    }

    /// Leaves all lines that start like this out of the stats, as a `stats_config` can.
    pub fn hide_stats(&self, prefix: &str) {
        let stats = &mut lock(&self.script).stats;
        stats.retain(|name, _| !name.starts_with(prefix));
    }

    /// Lets every request of this kind fail, until it is cleared.
    pub fn fault(&self, route: Route, fault: Fault) {
        lock(&self.script).faults.insert(route, (None, fault));
    }

    /// Lets the next `n` requests of this kind fail.
    pub fn fault_times(&self, route: Route, n: usize, fault: Fault) {
        lock(&self.script).faults.insert(route, (Some(n), fault));
    }

    /// Ends a fault.
    pub fn clear(&self, route: Route) {
        lock(&self.script).faults.remove(&route);
    }

    /// Ends all connections and refuses new ones, as the socket of a dead process does.
    pub fn refuse(&mut self) {
        self.listening = Listening::Refusing(None);
        if matches!(self.address, Address::Tcp(_)) {
            // A connection of another test may have got it in this moment, for its own end.
            let kept = wait_for("the port to be free", || self.address.bind().ok());
            self.listening = Listening::Refusing(Some(kept));
        }
    }

    /// The same, and the socket's file is gone as well.
    pub fn vanish(&mut self) {
        self.refuse();
        if let Address::Unix(path) = &self.address {
            let _gone_already = fs::remove_file(path);
        }
    }

    /// Ends all connections and lets new ones wait in a backlog that is full and stays so.
    pub fn full_backlog(&mut self) {
        self.vanish();
        let listener = self.address.bind().expect("listen again");
        listener.listen(0).expect("listen again");
        let mut sockets = vec![listener];
        while let Ok(socket) = self.address.connect(Duration::from_millis(100)) {
            sockets.push(socket);
            assert!(sockets.len() < 10, "the backlog does not get full");
        }
        self.listening = Listening::Full(sockets);
    }

    /// Listens again, at the same address.
    pub fn come_back(&mut self) {
        self.vanish();
        let (script, requests) = (Arc::clone(&self.script), self.requests.clone());
        let server = Server::start(&self.address, move |socket| {
            // An error is a client that has disconnected.
            let _ = serve(socket, &script, &requests);
        });
        let server = server.expect("listen");
        self.address = server.address().clone();
        self.listening = Listening::Serving(server);
    }

    /// The first line of each request, and when the request was complete.
    pub fn requests(&self) -> Vec<(Instant, String)> {
        let all = self.requests.all().into_iter();
        all.map(|(at, (_, line))| (at, line)).collect()
    }

    /// How many requests of this kind there were.
    pub fn count(&self, route: Route) -> usize {
        let all = self.requests.all();
        all.iter().filter(|(_, (kind, _))| *kind == route).count()
    }

    /// When the `n`th request of this kind came, counted from 1; waits for it.
    #[track_caller]
    pub fn wait_for(&self, route: Route, n: usize) -> Instant {
        match self.requests.nth(n, PATIENCE, |(kind, _)| *kind == route) {
            Some(at) => at,
            None => panic!("no {n} of {route:?} in {:#?}", self.requests()),
        }
    }
}

impl Route {
    fn of(path: &str) -> Self {
        match path.split('?').next() {
            Some("/ready") => Self::Ready,
            Some("/stats") if !path.contains("usedonly") => Self::AllGauges,
            Some("/stats") if path.contains("type=Counters") => Self::Accepted,
            Some("/stats") => Self::Stats,
            Some("/healthcheck/fail") => Self::Fail,
            Some("/healthcheck/ok") => Self::Ok,
            Some("/drain_listeners") => Self::Listeners,
            Some("/listeners") => Self::Listing,
            _ => Self::Other,
        }
    }
}

impl Script {
    fn next_fault(&mut self, route: Route) -> Option<Fault> {
        let (times, fault) = self.faults.get_mut(&route)?;
        match times {
            Some(0) => return None,
            Some(n) => *n -= 1,
            None => {}
        }
        Some(fault.clone())
    }

    fn respond(&self, method: &str, route: Route) -> (u16, String) {
        let (status, body) = match (route, method) {
            (Route::Ready, _) => match self.state {
                State::Live => (200, "LIVE\n"),
                State::Draining => (503, "DRAINING\n"),
                State::Initializing => (503, "INITIALIZING\n"),
            },
            (Route::Listing, _) => (200, "web::0.0.0.0:8080\n"),
            (Route::Stats | Route::AllGauges, _) => {
                let lines = self.stats.iter().map(|(name, value)| format!("{name}: {value}\n"));
                return (200, lines.collect());
            }
            (Route::Fail | Route::Ok | Route::Listeners, "POST") => (200, "OK\n"),
            (Route::Fail | Route::Ok | Route::Listeners, _) => {
                (405, "Method GET not allowed, POST required.")
            }
            (Route::Accepted, _) => {
                let counters = self.stats.iter().filter(|(name, _)| name.ends_with("_total"));
                return (200, counters.map(|(name, n)| format!("{name}: {n}\n")).collect());
            }
            (Route::Other, _) => (404, "invalid path.\n"),
        };
        (status, body.to_owned())
    }

    fn set_state(&mut self, state: State) {
        self.state = state;
        if let Some(live) = self.stats.get_mut("server.live") {
            *live = (state == State::Live).into();
        }
    }
}

/// Reads a request head but for its last byte, or `None` if the client disconnects. On a Unix socket, closing is
/// a reset only while there is input unread.
fn read_head(socket: &Socket) -> io::Result<Option<String>> {
    let deadline = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r") {
        let mut byte = [0];
        if head.len() > 16 << 10 || read_before(socket, &mut byte, deadline)? == 0 {
            return Ok(None);
        }
        head.extend(byte);
    }
    // From here on the end of the connection is bound enough, and `Fault::Silent` needs no other.
    socket.set_read_timeout(None)?;
    socket.peek(&mut [MaybeUninit::uninit()])?;
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

fn serve(
    mut socket: &Socket,
    script: &Mutex<Script>,
    requests: &Timeline<(Route, String)>,
) -> io::Result<()> {
    while let Some(head) = read_head(socket)? {
        let line = head.lines().next().unwrap_or_default();
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default();
        let route = Route::of(words.next().unwrap_or_default());
        let closes = head.to_ascii_lowercase().contains("\r\nconnection: close\r\n");
        let (fault, (status, body)) = {
            let mut script = lock(script);
            let fault = script.next_fault(route);
            match (&fault, method, route) {
                (None, "POST", Route::Fail) => script.set_state(State::Draining),
                (None, "POST", Route::Ok) => script.set_state(State::Live),
                _ => {}
            }
            (fault, script.respond(method, route))
        };
        requests.push((route, line.to_owned()));
        if matches!(fault, Some(Fault::ResetMidBody)) {
            let half = &body[..body.len() / 2];
            return socket.write_all(with_length(status, body.len(), half).as_bytes());
        }
        socket.read_exact(&mut [0])?;
        let response = match fault {
            None => chunked(status, closes, &body),
            Some(Fault::Status(other)) => chunked(other, closes, "scripted\n"),
            Some(Fault::Body(other)) => chunked(200, closes, &other),
            Some(Fault::Redirect) => {
                chunked(302, closes, "").replacen("\r\n", "\r\nlocation: /elsewhere\r\n", 1)
            }
            Some(fault) => return spoil(socket, fault, status, &body),
        };
        socket.write_all(response.as_bytes())?;
        if closes {
            break;
        }
    }
    Ok(())
}

/// Not a sleep, so that the end of the connection ends it at once.
fn disconnects_within(socket: &Socket, time: Duration) -> bool {
    matches!(read_before(socket, &mut [0], Instant::now() + time), Ok(0))
}

/// The faults after which the connection is closed.
fn spoil(mut socket: &Socket, fault: Fault, status: u16, body: &str) -> io::Result<()> {
    match fault {
        Fault::Silent => {
            io::copy(&mut socket, &mut io::sink())?;
        }
        Fault::Garbage => socket.write_all(&(0..=255).rev().collect::<Vec<u8>>())?,
        Fault::NotHttp => socket.write_all(b"SSH-2.0-OpenSSH_9.9\r\n")?,
        Fault::Raw(bytes) => socket.write_all(&bytes)?,
        Fault::Truncated => {
            socket.write_all(with_length(status, body.len() + 100, body).as_bytes())?;
        }
        Fault::TruncatedChunk => {
            let response = chunked(status, true, body);
            // Without the last chunk, the end of line before it and the last byte.
            let kept = response.len() - "0\r\n\r\n".len() - "\r\n".len() - 1;
            socket.write_all(&response.as_bytes()[..kept])?;
        }
        Fault::Endless => {
            socket.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
            loop {
                socket.write_all("endless: 1\n".repeat(500).as_bytes())?;
            }
        }
        Fault::EndlessHead => {
            socket.write_all(b"HTTP/1.1 200 OK\r\nendless: ")?;
            loop {
                socket.write_all(&[b'e'; 4096])?;
            }
        }
        Fault::Late(after) => {
            if disconnects_within(socket, after) {
                return Ok(());
            }
            socket.write_all(chunked(status, true, body).as_bytes())?;
        }
        Fault::Slow { every } => {
            for byte in chunked(status, true, body).bytes() {
                socket.write_all(&[byte])?;
                if disconnects_within(socket, every) {
                    break;
                }
            }
        }
        // `Close`, and those that `serve` has handled.
        _ => {}
    }
    Ok(())
}

fn head(status: u16) -> String {
    let reason = match status {
        200 => "OK",
        302 => "Found",
        404 => "Not Found",
        405 => "Method Not Allowed",
        503 => "Service Unavailable",
        _ => "Scripted",
    };
    format!(
        "HTTP/1.1 {status} {reason}\r\n\
         content-type: text/plain; charset=UTF-8\r\n\
         cache-control: no-cache, max-age=0\r\n\
         x-content-type-options: nosniff\r\n\
         date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
         server: envoy\r\n"
    )
}

fn with_length(status: u16, length: usize, body: &str) -> String {
    format!("{}content-length: {length}\r\n\r\n{body}", head(status))
}

/// As Envoy sends it.
fn chunked(status: u16, closes: bool, body: &str) -> String {
    let mut response = head(status);
    if closes {
        response += "connection: close\r\n";
    }
    response += "transfer-encoding: chunked\r\n\r\n";
    if !body.is_empty() {
        let _ = write!(response, "{:x}\r\n{body}\r\n", body.len());
    }
    response + "0\r\n\r\n"
}
