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
