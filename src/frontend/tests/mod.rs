//! Rounds of a frontend, at times that the test sets, with a test in place of the backend.

mod clients;
mod eviction;
mod hooks;
mod kept;
mod listeners;
mod panics;
mod upstream;
mod waiting;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

use super::connection::Wait;
use super::request::{After, Request};
use super::response::{PLAIN_TEXT, Response};
use super::*;
use crate::backend::Wire;
use crate::cli::drain_request::DrainRequest;
use crate::cli::options::{Options, Overrides};
use crate::control_socket;
use crate::coordinator::Coordinator;
use crate::coordinator::replies::reply;
use crate::drain::HOOK_PAIRING_WINDOW;
use crate::envoy::admin::Admin;
use crate::envoy::{Call, CallResult};
use crate::route::{PublicRoute, Route, Status};

/// Longer than any step takes; only a failing test waits this long.
const TEST_TIMEOUT: Duration = Duration::from_secs(10);

const NANO: Duration = Duration::from_nanos(1);

/// When the tests begin.
const START: Timestamp = Timestamp::from_boot(Duration::from_secs(1000));

const TIMEOUTS: Timeouts = Timeouts { start: Duration::from_secs(15), ready: None };

const LIMITS: Limits = Limits { max_connections: 4, max_waiting: 2 };

const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\n\r\n";
const METRICS: &str = "GET /metrics HTTP/1.1\r\n\r\n";
const SHUTDOWN: &str = "GET /shutdown HTTP/1.1\r\n\r\n";
/// The exec hook of the first drain. Where none has started, its response is due at once.
const EXEC_HOOK: &str = "GET /shutdown?drain=1 HTTP/1.1\r\n\r\n";
const DRAIN: &str = "POST /drain HTTP/1.1\r\n\r\n";
const BAD_METHOD: &str = "PUT / HTTP/1.1\r\n\r\n";

const NOT_LOGGED: &str = "this was not logged when it happened first";

/// How connects to the backend end.
#[derive(Clone, Copy)]
enum Connects {
    Wire,
    Error,
    /// The next one; those after it make wires.
    Panic,
}

struct Harness {
    coordinator: Coordinator,
    frontend: Frontend,
    /// In the order of [`ListenerId::ALL`].
    addresses: [SockAddr; 2],
    /// Where clients connect to if the test does not say where.
    listener: ListenerId,
    connects: Arc<Mutex<Connects>>,
    made: mpsc::Receiver<UnixStream>,
    /// The backend's ends of the wires, oldest first. None is closed but by a test.
    wires: Vec<UnixStream>,
    /// While this is locked, Envoy does not reply.
    envoy: Arc<Mutex<()>>,
    now: Timestamp,
    folder: TempDir,
}

/// An Envoy without connections.
struct Envoy(Arc<Mutex<()>>);

impl Admin for Envoy {
    fn call(&mut self, call: Call, _: &Options, _: Option<Duration>) -> CallResult {
        let _running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(reply(call, 0))
    }
}

impl Harness {
    fn new(listener: ListenerId, limits: Limits, now: Timestamp) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let (control, file) = control_socket::bind(std::slice::from_ref(&path)).unwrap();
        let public = TcpListener::bind("127.0.0.1:0").unwrap();
        public.set_nonblocking(true).unwrap();
        let addresses = [SockAddr::unix(path).unwrap(), public.local_addr().unwrap().into()];
        let options = Options { check_delay: Duration::ZERO, ..Options::default() };
        let coordinator = Coordinator::new(options, &Overrides::default(), false);
        let waker = Waker::new().unwrap();
        coordinator.set_waker(waker.clone());
        let connects = Arc::new(Mutex::new(Connects::Wire));
        let (sender, made) = mpsc::channel();
        let how = Arc::clone(&connects);
        let connect = move || {
            let mut next = how.lock().unwrap();
            let now = *next;
            if let Connects::Panic = now {
                *next = Connects::Wire;
            }
            drop(next);
            match now {
                Connects::Wire => {}
                Connects::Error => return Err(io::Error::other("as the test wants")),
                Connects::Panic => panic!("as the test wants"),
            }
            let (near, far) = UnixStream::pair()?;
            far.set_nonblocking(true)?;
            // A test that has seen enough has dropped the other end.
            sender.send(far).unwrap_or_default();
            Ok(Wire::from(OwnedFd::from(near)))
        };
        let frontend = Frontend::new(
            Arc::new(file),
            (Listener::Control(control), limits),
            (Listener::Public(public), limits),
            TIMEOUTS,
            Box::new(connect),
            waker,
            coordinator.tracker(),
        );
        let mut harness = Self {
            coordinator,
            frontend,
            addresses,
            listener,
            connects,
            made,
            wires: Vec::new(),
            envoy: Arc::default(),
            now,
            folder,
        };
        harness.round();
        harness.assert_wires(1);
        harness
    }

    /// Its clients connect to the public port.
    fn public(limits: Limits) -> Self {
        Self::new(ListenerId::Public, limits, START)
    }

    /// Its clients connect to the control socket.
    fn control(limits: Limits) -> Self {
        Self::new(ListenerId::Control, limits, START)
    }

    /// A client of a listener that has sent this; at the public port it comes from 127.0.0.`host`.
    fn connect_at(&self, listener: ListenerId, host: u8, text: impl AsRef<[u8]>) -> Socket {
        let address = &self.addresses[listener as usize];
        let client = Socket::new(address.domain(), Type::STREAM, None).unwrap();
        if address.domain() == Domain::IPV4 {
            client.bind(&std::net::SocketAddr::from(([127, 0, 0, host], 0)).into()).unwrap();
        }
        client.connect(address).unwrap();
        send(&client, text);
        client
    }

    fn connect_from(&self, host: u8, text: impl AsRef<[u8]>) -> Socket {
        self.connect_at(self.listener, host, text)
    }

    fn connect(&self, text: impl AsRef<[u8]>) -> Socket {
        self.connect_from(1, text)
    }

    fn connect_control(&self, text: impl AsRef<[u8]>) -> Socket {
        self.connect_at(ListenerId::Control, 1, text)
    }

    fn connect_public(&self, text: impl AsRef<[u8]>) -> Socket {
        self.connect_at(ListenerId::Public, 1, text)
    }

    /// Starts a drain, which ends once a worker is there and Envoy replies.
    fn start_drain(&self) {
        self.coordinator.trigger().start(&DrainRequest::default()).unwrap();
    }

    /// From now on a worker does what the coordinator wants done.
    fn start_worker(&self) {
        let (worker, mut envoy) = (self.coordinator.clone(), Envoy(Arc::clone(&self.envoy)));
        // This thread works until the test process exits.
        thread::spawn(move || worker.work(&mut envoy));
    }

    /// Waits until the drain of this number has ended, while no round is run: then the next round sees
    /// that for all hooks.
    #[track_caller]
    fn await_end(&self, number: u64) {
        let (tracker, deadline) = (self.coordinator.tracker(), Instant::now() + TEST_TIMEOUT);
        let has_ended = || tracker.answer_due(&Route::ExecHook(number)).is_some();
        while !has_ended() {
            let snapshot = self.coordinator.observer().snapshot();
            assert!(Instant::now() < deadline, "drain {number} has not ended: {snapshot:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn round(&mut self) {
        let ready = self.frontend.wait_ready(self.now, self.now + Duration::from_millis(1));
        self.frontend.dispatch(&ready, self.now);
    }

    /// Runs rounds until the condition holds.
    #[track_caller]
    fn run_until(&mut self, wanted: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !condition(self) {
            assert!(
                Instant::now() < deadline,
                "waited {TEST_TIMEOUT:?} for {wanted}; {}",
                self.state()
            );
            self.round();
        }
    }

    /// What the messages of failed assertions show.
    fn state(&mut self) -> String {
        let (wires, upstream) = (self.wires(), &self.frontend.upstream);
        let upstream = match (upstream.fd(), upstream.is_idle()) {
            (None, _) => "lost",
            (_, true) => "idle",
            (_, false) => "with a request in flight",
        };
        format!("held: {}; wire {wires} is {upstream}", self.connections())
    }

    /// Lets this time pass, and runs a round.
    fn advance(&mut self, time: Duration) {
        self.now = self.now + time;
        self.round();
    }

    /// When the next round is due, from now.
    fn next_round(&self) -> Option<Duration> {
        let deadline = self.frontend.next_deadline(self.now);
        (deadline < Timestamp::MAX).then(|| deadline - self.now)
    }

    #[track_caller]
    fn assert_next_round(&mut self, expected: Option<Duration>) {
        let (found, state) = (self.next_round(), self.state());
        assert_eq!(found, expected, "the next round is due in this time; {state}");
    }

    /// The connections' ids, each with the letter of its state: Reading, Waiting, Sending a
    /// response, Lingering, Closed.
    fn connections(&self) -> String {
        let letter = |connection: &Connection| match connection.state {
            ConnectionState::Reading(_) => 'R',
            ConnectionState::Waiting(..) => 'W',
            ConnectionState::Responding { .. } => 'S',
            ConnectionState::Lingering(_) => 'L',
            ConnectionState::Closed => 'C',
        };
        let connections = self.frontend.connections.iter();
        let texts =
            connections.map(|connection| format!("{}{}", connection.id.0, letter(connection)));
        texts.collect::<Vec<_>>().join(" ")
    }

    /// Runs rounds until these connections are held, and stay.
    #[track_caller]
    fn assert_connections(&mut self, expected: &str) {
        let mut times = 0;
        self.run_until(expected, |harness| {
            times = if harness.connections() == expected { times + 1 } else { 0 };
            times == 3
        });
    }

    /// All that a client receives, to the end of its connection.
    #[track_caller]
    fn receive_all(&mut self, client: &Socket) -> String {
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        client.set_nonblocking(true).unwrap();
        self.run_until("the end of a client's connection", |_| {
            loop {
                match (&*client).read(&mut buffer) {
                    Ok(0) => return true,
                    Ok(length) => text.extend_from_slice(&buffer[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
                    Err(error) => panic!("a client's connection: {error}"),
                }
            }
        });
        String::from_utf8(text).unwrap()
    }

    /// Expects this body as the response to a client whose connection is kept.
    #[track_caller]
    fn assert_kept_response(&mut self, client: &Socket, body: &str) {
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        client.set_nonblocking(true).unwrap();
        let end = format!("\r\nConnection: keep-alive\r\n\r\n{body}");
        self.run_until(&end, |_| {
            if let Ok(length) = (&*client).read(&mut buffer) {
                assert_ne!(length, 0, "the connection has ended behind {text:?}");
                text += std::str::from_utf8(&buffer[..length]).unwrap();
            }
            text.ends_with(&end)
        });
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    }

    /// Expects this status and body as the response to a client.
    #[track_caller]
    fn assert_response(&mut self, client: &Socket, status: &str, body: &str) {
        let text = self.receive_all(client);
        let (head, found) = text.split_once("\r\n\r\n").expect("a response head");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "not a {status}: {text}");
        assert_eq!(found, body, "the body of a {status}");
    }

    /// How many wires were made.
    fn wires(&mut self) -> usize {
        self.wires.extend(self.made.try_iter());
        self.wires.len()
    }

    #[track_caller]
    fn assert_wires(&mut self, expected: usize) {
        let (found, state) = (self.wires(), self.state());
        assert_eq!(found, expected, "wires that were made; {state}");
    }

    /// The backend's end of the latest wire.
    fn wire(&mut self) -> &mut UnixStream {
        self.wires();
        self.wires.last_mut().unwrap()
    }

    /// Ends the latest wire, as its server would, and runs rounds until that is seen.
    #[track_caller]
    fn end_wire(&mut self) {
        let wires = self.wires();
        self.wire().shutdown(Shutdown::Both).unwrap();
        self.run_until_lost(wires);
    }

    /// Runs rounds until this wire is given up.
    #[track_caller]
    fn run_until_lost(&mut self, wire: usize) {
        self.run_until("the loss of a wire", |harness| {
            harness.frontend.upstream.fd().is_none() || harness.wires() > wire
        });
    }

    /// What the backend has received on the latest wire since it looked last.
    fn received(&mut self) -> String {
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match self.wire().read(&mut buffer) {
                Ok(length @ 1..) => text.extend_from_slice(&buffer[..length]),
                // A test may have ended it.
                Ok(0) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("the backend's end of a wire: {error}"),
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Expects this and nothing else as the next request to the backend: what has this first line.
    #[track_caller]
    fn backend_request(&mut self, line: &str) {
        let mut text = String::new();
        self.run_until(line, |harness| {
            text += &harness.received();
            text.ends_with("\r\n\r\n")
        });
        let length = if line.starts_with("POST") { "Content-Length: 0\r\n" } else { "" };
        let expected = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n");
        assert_eq!(text, expected, "the request that reached the backend");
    }

    #[track_caller]
    fn assert_no_backend_request(&mut self) {
        self.round();
        let text = self.received();
        assert_eq!(text, "", "a request to the backend; {}", self.state());
    }

    /// Sends these bytes over the latest wire.
    fn backend_sends(&mut self, text: impl AsRef<[u8]>) {
        self.wire().write_all(text.as_ref()).unwrap();
    }

    /// Sends a response of the backend.
    fn respond(&mut self, status: u16, body: &str) {
        self.backend_sends(response(status, body));
    }

    /// The responses that were counted at the public port.
    fn responses(&self) -> Vec<(Option<PublicRoute>, &'static str, u64)> {
        let routes = PublicRoute::ALL.map(Some).into_iter().chain([None]);
        let rows = routes.zip(self.coordinator.observer().snapshot().counters.requests);
        let all = rows.flat_map(|(route, row)| {
            Status::ALL.into_iter().zip(row).map(move |(status, n)| (route, status.code(), n))
        });
        all.filter(|(_, _, times)| *times > 0).collect()
    }

    fn rejected_connections(&self) -> u64 {
        self.coordinator.observer().snapshot().counters.connections_rejected
    }

    #[track_caller]
    fn assert_rejected(&self, expected: u64) {
        let held = self.connections();
        assert_eq!(self.rejected_connections(), expected, "rejected so far; held: {held}");
    }

    fn envoy_hooks(&self) -> usize {
        self.coordinator.observer().snapshot().envoy_hooks
    }

    #[track_caller]
    fn assert_envoy_hooks(&self, expected: usize) {
        let held = self.connections();
        assert_eq!(self.envoy_hooks(), expected, "Envoy's hooks that wait; held: {held}");
    }

    #[track_caller]
    fn assert_idle(&mut self) {
        let idle = self.frontend.upstream.is_idle();
        assert!(idle, "no request is to be in flight; {}", self.state());
    }

    /// Makes the response to the client at this index longer than what is sent at once.
    fn shrink_send_buffer(&self, index: usize) {
        setsockopt(&self.frontend.connections[index].fd(), sockopt::SndBuf, &1).unwrap();
    }
}

fn send(mut client: &Socket, text: impl AsRef<[u8]>) {
    client.write_all(text.as_ref()).unwrap();
}

/// A request that is served, as most clients send it.
fn request_for(route: Route) -> Request {
    Request { route, head_only: false, after: After::Close }
}

/// A response of the backend.
fn response(status: u16, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nContent-Type: a/b\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
