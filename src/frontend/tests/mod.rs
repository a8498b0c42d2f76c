//! Rounds of a frontend, at times that the test sets, with a test in place of the backend.

mod clients;
mod eviction;
mod panics;
mod upstream;
mod waiting;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

use super::*;
use crate::cli::drain_request::DrainRequest;
use crate::cli::options::{Options, Overrides};
use crate::control_socket::NextListener;
use crate::coordinator::Coordinator;
use crate::route;

/// Longer than any step takes; only a failing test waits this long.
const TEST_TIMEOUT: Duration = Duration::from_secs(10);

const NANO: Duration = Duration::from_nanos(1);

const TIMEOUTS: Timeouts = Timeouts { start: Duration::from_secs(15), ready: None };

const LIMITS: Limits = Limits { max_connections: 4, max_waiting: 2, timeouts: TIMEOUTS };

const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\n\r\n";
const SHUTDOWN: &str = "GET /shutdown HTTP/1.1\r\n\r\n";
const BAD_METHOD: &str = "PUT / HTTP/1.1\r\n\r\n";

const NOT_LOGGED: &str = "this was not logged when it happened first";

struct Harness {
    coordinator: Coordinator,
    frontend: Frontend,
    /// Of its listener.
    address: SockAddr,
    backend: UnixListener,
    now: Timestamp,
    folder: TempDir,
}

fn bind_backend(folder: &TempDir) -> UnixListener {
    let backend = UnixListener::bind(folder.path().join("backend")).unwrap();
    backend.set_nonblocking(true).unwrap();
    backend
}

impl Harness {
    fn new(router: Router, limits: Limits, listen: fn(&Path) -> (Listener, SockAddr)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (listener, address) = listen(folder.path());
        let coordinator = Coordinator::new(Options::default(), &Overrides::default(), false);
        let backend = folder.path().join("backend");
        let on_backend_error = Box::new(|_| {});
        let tracker = coordinator.tracker();
        let frontend = Frontend::new(listener, router, backend, on_backend_error, tracker, limits);
        let backend = bind_backend(&folder);
        let now = Timestamp::from_boot(Duration::from_secs(1000));
        Self { coordinator, frontend, address, backend, now, folder }
    }

    fn public(limits: Limits) -> Self {
        Self::new(route::public_target, limits, |_| {
            let port = TcpListener::bind("127.0.0.1:0").unwrap();
            port.set_nonblocking(true).unwrap();
            let address = port.local_addr().unwrap().into();
            (Listener::Public(port), address)
        })
    }

    fn control(limits: Limits) -> Self {
        Self::new(route::control_target, limits, |folder| {
            let path = folder.join("control");
            let socket = UnixListener::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            (Listener::Control(socket, NextListener::default()), SockAddr::unix(path).unwrap())
        })
    }

    /// A client that has sent this; at the public port it connects from 127.0.0.`host`.
    fn connect_from(&self, host: u8, text: impl AsRef<[u8]>) -> Socket {
        let client = Socket::new(self.address.domain(), Type::STREAM, None).unwrap();
        if self.address.domain() == Domain::IPV4 {
            client.bind(&std::net::SocketAddr::from(([127, 0, 0, host], 0)).into()).unwrap();
        }
        client.connect(&self.address).unwrap();
        send(&client, text);
        client
    }

    fn connect(&self, text: impl AsRef<[u8]>) -> Socket {
        self.connect_from(1, text)
    }

    fn start_drain(&self) {
        self.coordinator.trigger().start(&DrainRequest::default()).unwrap();
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
            let (held, upstream) = (self.connections(), self.frontend.upstream.len());
            let state = format!("held: {held}; {upstream} requests to the backend in flight");
            assert!(Instant::now() < deadline, "waited {TEST_TIMEOUT:?} for {wanted}; {state}");
            self.round();
        }
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
    fn assert_next_round(&self, expected: Option<Duration>) {
        let held = self.connections();
        assert_eq!(self.next_round(), expected, "the next round is due in this time; held: {held}");
    }

    /// The connections' ids, each with the letter of its state: Reading, Waiting, Sending a
    /// response, Lingering, Closed.
    fn connections(&self) -> String {
        let letter = |connection: &Connection| match connection.state {
            ConnectionState::Reading(_) => 'R',
            ConnectionState::Waiting(_) => 'W',
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

    /// Expects this status and body as the response to a client.
    #[track_caller]
    fn assert_response(&mut self, client: &Socket, status: &str, body: &str) {
        let text = self.receive_all(client);
        let (head, found) = text.split_once("\r\n\r\n").expect("a response head");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "not a {status}: {text}");
        assert_eq!(found, body, "the body of a {status}");
    }

    /// The backend's side of the next request to it, which has this first line.
    #[track_caller]
    fn backend_request(&mut self, line: &str) -> UnixStream {
        let mut accepted = None;
        self.run_until(line, |harness| {
            accepted = harness.backend.accept().ok();
            accepted.is_some()
        });
        let mut stream = accepted.unwrap().0;
        let length = if line.starts_with("POST") { "Content-Length: 0\r\n" } else { "" };
        let expected =
            format!("{line} HTTP/1.1\r\nHost: localhost\r\n{length}Connection: close\r\n\r\n");
        assert_eq!(read_request(&mut stream), expected, "the request that reached the backend");
        stream
    }

    #[track_caller]
    fn assert_no_backend_request(&mut self) {
        self.round();
        match self.backend.accept() {
            Ok((mut stream, _)) => {
                panic!("a request to the backend: {}", read_request(&mut stream))
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
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

    /// How many requests to the backend are in flight.
    #[track_caller]
    fn assert_upstream(&self, expected: usize) {
        let held = self.connections();
        assert_eq!(self.frontend.upstream.len(), expected, "requests in flight; held: {held}");
    }

    /// Makes the response to the client at this index longer than what is sent at once.
    fn shrink_send_buffer(&self, index: usize) {
        setsockopt(&self.frontend.connections[index].fd(), sockopt::SndBuf, &1).unwrap();
    }
}

fn send(mut client: &Socket, text: impl AsRef<[u8]>) {
    client.write_all(text.as_ref()).unwrap();
}

/// What the backend receives.
fn read_request(stream: &mut UnixStream) -> String {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    while !request.ends_with(b"\r\n\r\n") {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "no whole request: {}", String::from_utf8_lossy(&request));
        request.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&request).into_owned()
}

fn respond(stream: &mut UnixStream, status: u16, body: &str) {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Type: a/b\r\nContent-Length: {length}\r\n\r\n")
        .unwrap();
    stream.write_all(body.as_bytes()).unwrap();
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
