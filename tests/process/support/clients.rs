//! Clients of Envoy's listeners. Each is one connection, which dropping it closes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::ops::Deref;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::PATIENCE;
use super::net::{self, Address, Response, read_before};

/// A TCP connection that says only what it is told to.
#[derive(Debug)]
pub struct Plain(Socket);

impl Plain {
    /// Connects to a port of 127.0.0.1.
    #[track_caller]
    pub fn open(port: u16) -> Self {
        Self::open_at(&Address::port(port))
    }

    /// Connects to any address.
    #[track_caller]
    pub fn open_at(address: &Address) -> Self {
        let socket = address.connect(PATIENCE).expect("connect");
        socket.set_write_timeout(Some(PATIENCE)).expect("set a time-out");
        Self(socket)
    }

    /// Sends all of it.
    #[track_caller]
    pub fn send(&self, bytes: &[u8]) {
        (&self.0).write_all(bytes).expect("send");
    }

    /// Reads just as many bytes.
    #[track_caller]
    pub fn receive(&self, n: usize) -> Vec<u8> {
        self.0.set_read_timeout(Some(PATIENCE)).expect("set a time-out");
        let mut bytes = vec![0; n];
        (&self.0).read_exact(&mut bytes).expect("receive");
        bytes
    }

    /// Reads one HTTP/1.1 answer.
    #[track_caller]
    pub fn receive_response(&self) -> Response {
        net::read_response(&self.0, PATIENCE).expect("an answer")
    }

    /// Whether what is sent comes back: a TCP proxy has connected it with the upstream server.
    #[track_caller]
    pub fn echoes(&self) -> bool {
        self.send(b"ping");
        self.receive(4) == b"ping"
    }

    /// Whether the peer closes, or resets, before then. Drops what it still says.
    #[track_caller]
    pub fn peer_closed_within(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            match read_before(&self.0, &mut [0; 4096], deadline) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::TimedOut => return false,
                    ErrorKind::ConnectionReset => return true,
                    _ => panic!("read: {error}"),
                },
            }
        }
    }
}

/// An HTTP/1.1 connection that stays open after its requests.
#[derive(Debug)]
pub struct KeptAlive(Plain);

impl Deref for KeptAlive {
    type Target = Plain;
    fn deref(&self) -> &Plain {
        &self.0
    }
}

impl KeptAlive {
    /// Connects and does one request.
    #[track_caller]
    pub fn open(port: u16) -> Self {
        let client = Self(Plain::open(port));
        assert_eq!(client.request("/").status, 200);
        client
    }

    /// Sends a request and does not wait for its answer.
    #[track_caller]
    pub fn begin(&self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes());
    }

    /// Does a request.
    #[track_caller]
    pub fn request(&self, path: &str) -> Response {
        self.begin(path);
        self.receive_response()
    }
}

/// An HTTP/2 connection with prior knowledge, no more of it than a gauge needs.
#[derive(Debug)]
pub struct Http2 {
    plain: Plain,
    next_stream: u32,
}

impl Deref for Http2 {
    type Target = Plain;
    fn deref(&self) -> &Plain {
        &self.plain
    }
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM_AND_HEADERS: u8 = 0x5;

impl Http2 {
    /// Connects and does one request.
    #[track_caller]
    pub fn open(port: u16) -> Self {
        let mut client = Self { plain: Plain::open(port), next_stream: 1 };
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        client.send_frame(SETTINGS, 0, 0, b"");
        client.request();
        client
    }

    /// Does a `GET /` and reads as far as the head of its answer, which must be a 200. Tells
    /// whether a GOAWAY came with it.
    #[track_caller]
    pub fn request(&mut self) -> bool {
        let stream = self.next_stream;
        self.next_stream += 2;
        // HPACK: `:method GET`, `:scheme http` and `:path /` by number, `:authority` spelt out.
        let block = b"\x82\x86\x84\x01\x09localhost";
        self.send_frame(HEADERS, END_STREAM_AND_HEADERS, stream, block);
        let mut leaving = false;
        loop {
            match self.receive_frame() {
                (HEADERS, block) => {
                    assert_eq!(block.first(), Some(&0x88), "no `:status 200` in {block:?}");
                    return leaving;
                }
                (kind, _) => leaving |= kind == GOAWAY,
            }
        }
    }

    fn send_frame(&self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a short frame");
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.send(&frame);
    }

    /// The kind and payload of a frame.
    fn receive_frame(&self) -> (u8, Vec<u8>) {
        let head = self.receive(9);
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        (head[3], self.receive(length as usize))
    }
}
