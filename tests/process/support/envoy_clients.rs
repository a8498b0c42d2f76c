//! HTTP clients of Envoy's listeners. Each is one connection, closed when it is dropped. A TCP
//! client is a [`Connection`] itself.

use std::ops::Deref;

use super::client::Connection;
use super::http::Response;

/// An HTTP/1.1 connection that stays open after its requests.
#[derive(Debug)]
pub struct KeptAlive(Connection);

impl Deref for KeptAlive {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl KeptAlive {
    /// Connects and does one request.
    #[track_caller]
    pub fn open(port: u16) -> Self {
        let client = Self(Connection::open(port));
        assert_eq!(client.request("/").status, 200);
        client
    }

    /// Sends a request, and does not wait for its response.
    #[track_caller]
    pub fn start(&self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    }

    /// Does a request.
    #[track_caller]
    pub fn request(&self, path: &str) -> Response {
        self.start(path);
        self.response()
    }
}

/// A connection that is upgraded to a stream, by this request.
#[track_caller]
fn upgraded(port: u16, request: &str, status: &str) -> Connection {
    let client = Connection::open(port);
    client.send(request);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(client.receive(1));
    }
    let head = String::from_utf8_lossy(&head);
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    assert!(client.echoes());
    client
}

/// A tunnel that CONNECT has made.
#[track_caller]
pub fn connect_tunnel(port: u16) -> Connection {
    upgraded(port, "CONNECT upstream:1 HTTP/1.1\r\nhost: upstream:1\r\n\r\n", "200")
}

/// A WebSocket (RFC 6455), of which nothing but its opening handshake matters to Envoy.
#[track_caller]
pub fn web_socket(port: u16) -> Connection {
    let request = "GET /hold HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    upgraded(port, request, "101")
}

/// An HTTP/2 connection with prior knowledge, no more of it than a gauge needs.
#[derive(Debug)]
pub struct Http2 {
    connection: Connection,
    next_stream: u32,
}

impl Deref for Http2 {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// A GOAWAY with this one only announces another.
pub const ANY_STREAM: u32 = i32::MAX as u32;

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM_AND_HEADERS: u8 = 0x5;

impl Http2 {
    /// Connects and does one request.
    #[track_caller]
    pub fn open(port: u16) -> Self {
        let mut client = Self { connection: Connection::open(port), next_stream: 1 };
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        client.send_frame(SETTINGS, 0, 0, b"");
        client.request();
        client
    }

    /// Does a `GET /` and reads as far as the head of its response, which must be a 200. Returns
    /// whether a GOAWAY came with it.
    #[track_caller]
    pub fn request(&mut self) -> bool {
        self.start("/");
        self.response()
    }

    /// Sends a request, and does not wait for its response.
    #[track_caller]
    pub fn start(&mut self, path: &str) {
        let stream = self.next_stream;
        self.next_stream += 2;
        // HPACK: `:method GET` and `:scheme http` by number, `:authority` and `:path` spelt out.
        let mut block = b"\x82\x86\x01\x09localhost\x04".to_vec();
        block.push(u8::try_from(path.len()).expect("a short path"));
        block.extend(path.bytes());
        self.send_frame(HEADERS, END_STREAM_AND_HEADERS, stream, &block);
    }

    /// Reads as far as the head of the next response, which must be a 200. Returns whether a GOAWAY
    /// came with it.
    #[track_caller]
    pub fn response(&self) -> bool {
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

    /// Reads as far as the next GOAWAY. Returns the last stream that Envoy may process, which
    /// [`ANY_STREAM`] does not say yet (RFC 9113, section 6.8).
    #[track_caller]
    pub fn last_stream(&self) -> u32 {
        loop {
            if let (GOAWAY, payload) = self.receive_frame() {
                let last = payload.first_chunk().expect("a stream");
                return u32::from_be_bytes(*last);
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
