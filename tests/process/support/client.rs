//! A client of the public port, of the control socket or of any other address, and its
//! connections.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::http::Response;
use super::net::Address;
use super::{PATIENCE, lock};

/// Makes requests to one address, each on a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    to: Address,
    from: Option<IpAddr>,
}

impl From<Address> for Client {
    fn from(to: Address) -> Self {
        Self { to, from: None }
    }
}

impl Client {
    /// Of this port of 127.0.0.1.
    pub fn of_port(port: u16) -> Self {
        Address::port(port).into()
    }

    /// The same client at 127.0.0.`host`.
    pub fn at_host(&self, host: u8) -> Self {
        self.at_address(Ipv4Addr::new(127, 0, 0, host).into())
    }

    /// The same client at another address of its own.
    pub fn at_address(&self, from: IpAddr) -> Self {
        Self { to: self.to.clone(), from: Some(from) }
    }

    /// Connects.
    ///
    /// # Errors
    /// Where no connection can be made.
    pub fn try_connect(&self) -> io::Result<Connection> {
        let socket = self.to.connect_from(self.from, PATIENCE)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection { socket, sent: Mutex::default() })
    }

    #[track_caller]
    pub fn connect(&self) -> Connection {
        self.try_connect().expect("connect")
    }

    /// Connects and sends this.
    #[track_caller]
    pub fn send(&self, bytes: impl AsRef<[u8]>) -> Connection {
        let connection = self.connect();
        connection.send(bytes);
        connection
    }

    /// Sends a GET, and does not wait for its response.
    #[track_caller]
    pub fn start_get(&self, path: &str) -> Connection {
        self.send(head("GET", path, ""))
    }

    /// One request and its response, within this time.
    ///
    /// # Errors
    /// Where there is no whole response in time.
    pub fn try_request(&self, method: &str, path: &str, timeout: Duration) -> io::Result<Response> {
        let deadline = Instant::now() + timeout;
        let mut socket = self.to.connect_from(self.from, timeout)?;
        socket.set_write_timeout(Some(timeout))?;
        socket.write_all(head(method, path, "content-length: 0\r\n").as_bytes())?;
        read_response(&socket, deadline.saturating_duration_since(Instant::now()))
    }

    /// One request and its response.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str) -> Response {
        match self.try_request(method, path, PATIENCE) {
            Ok(response) => response,
            Err(error) => panic!("{method} {path} at {}: {error}", self.to),
        }
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path)
    }

    #[track_caller]
    pub fn post(&self, path: &str) -> Response {
        self.request("POST", path)
    }
}

fn head(method: &str, path: &str, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{fields}\r\n")
}

/// A connection, on which a test sends what it likes; closed when it is dropped.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    /// The start of what was sent, for the messages of failed assertions.
    sent: Mutex<String>,
}

impl Connection {
    /// Connects to a port of 127.0.0.1.
    #[track_caller]
    pub fn open(port: u16) -> Self {
        Client::of_port(port).connect()
    }

    /// Sends all of this.
    #[track_caller]
    pub fn send(&self, bytes: impl AsRef<[u8]>) {
        let mut sent = lock(&self.sent);
        let room = 200_usize.saturating_sub(sent.len());
        let start = &bytes.as_ref()[..room.min(bytes.as_ref().len())];
        sent.push_str(&String::from_utf8_lossy(start));
        (&self.socket).write_all(bytes.as_ref()).expect("send");
    }

    /// Sends as much of this as the peer takes.
    pub fn try_send(&self, bytes: impl AsRef<[u8]>) {
        let _cut_short = (&self.socket).write_all(bytes.as_ref());
    }

    /// Closes the direction to the peer.
    #[track_caller]
    pub fn half_close(&self) {
        self.socket.shutdown(Shutdown::Write).expect("close a half");
    }

    /// Closes with a reset, which leaves nothing behind in the kernel.
    #[track_caller]
    pub fn reset(self) {
        self.socket.set_linger(Some(Duration::ZERO)).expect("set an option");
    }

    fn peek(&self) -> io::Result<usize> {
        self.socket.set_nonblocking(true).expect("set a mode");
        let n = self.socket.peek(&mut [MaybeUninit::uninit()]);
        self.socket.set_nonblocking(false).expect("set a mode");
        n
    }

    /// Whether the peer keeps the connection open and has sent nothing that is unread.
    pub fn is_waiting(&self) -> bool {
        self.peek().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Whether a response has started to arrive.
    pub fn is_answered(&self) -> bool {
        self.peek().is_ok_and(|n| n > 0)
    }

    /// Reads exactly this many bytes.
    #[track_caller]
    pub fn receive(&self, n: usize) -> Vec<u8> {
        self.socket.set_read_timeout(Some(PATIENCE)).expect("set a time-out");
        let mut bytes = vec![0; n];
        (&self.socket).read_exact(&mut bytes).expect("receive");
        bytes
    }

    /// Whether what is sent comes back: a TCP proxy has connected it with the upstream server.
    #[track_caller]
    pub fn echoes(&self) -> bool {
        self.send(b"ping");
        self.receive(4) == b"ping"
    }

    /// Reads one response, and no further.
    #[track_caller]
    pub fn response(&self) -> Response {
        let response = read_response(&self.socket, PATIENCE);
        response.unwrap_or_else(|error| panic!("no response to {:?}: {error}", lock(&self.sent)))
    }

    /// A response that has arrived whole by now, and the end of its connection.
    #[track_caller]
    pub fn arrived_response(&self) -> Response {
        let response = read_response(&self.socket, Duration::ZERO).expect("the whole response");
        assert!(self.ends_within(PATIENCE), "the connection stays open");
        response
    }

    /// The only response on the connection, and the orderly end behind it.
    #[track_caller]
    pub fn only_response(&self) -> Response {
        let (text, orderly) = self.read_to_end();
        assert!(orderly, "a reset behind {text:?}");
        Response::of(&text)
    }

    /// Everything to the end of the connection, and whether that end was orderly.
    #[track_caller]
    pub fn read_to_end(&self) -> (String, bool) {
        let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
        let orderly = loop {
            match read_before(&self.socket, &mut piece, Instant::now() + PATIENCE) {
                Ok(0) => break true,
                Ok(n) => bytes.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break false,
                Err(error) => panic!(
                    "{error} behind {:?}, after {:?} was sent",
                    String::from_utf8_lossy(&bytes),
                    lock(&self.sent)
                ),
            }
        };
        (String::from_utf8(bytes).expect("text"), orderly)
    }

    /// Whether the connection ends in time and in order. Nothing more may arrive.
    #[track_caller]
    pub fn ends_within(&self, timeout: Duration) -> bool {
        match read_before(&self.socket, &mut [0], Instant::now() + timeout) {
            Ok(0) => true,
            Err(error) if error.kind() == ErrorKind::TimedOut => false,
            other => panic!("no end: {other:?}"),
        }
    }

    /// Whether the peer closes, or resets, in time. Discards what it still sends.
    #[track_caller]
    pub fn peer_closed_within(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            match read_before(&self.socket, &mut [0; 4096], deadline) {
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

/// Reads once, before `deadline`; later is `TimedOut`.
pub fn read_before(mut socket: &Socket, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A time-out of zero would be none.
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match socket.read(buffer) {
            // With a time-out, the kernel does not resume an interrupted read.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(ErrorKind::TimedOut.into());
            }
            done => return done,
        }
    }
}

/// Reads one response, and no further.
///
/// # Errors
/// Where it is not whole in time.
pub fn read_response(socket: &Socket, timeout: Duration) -> io::Result<Response> {
    let deadline = Instant::now() + timeout;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = read_before(socket, &mut buffer, deadline)?;
        bytes.extend_from_slice(&buffer[..n]);
        if let Some(response) = Response::parse(&bytes, n == 0)? {
            return Ok(response);
        }
        if n == 0 {
            let got = String::from_utf8_lossy(&bytes).into_owned();
            return Err(io::Error::new(ErrorKind::UnexpectedEof, got));
        }
    }
}
