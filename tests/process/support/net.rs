//! Sockets of both kinds, a threaded server over them, and as much HTTP/1.1 as a client needs.

use std::fmt;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::panic;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// Whether this machine has an IPv6 loopback.
pub fn ipv6_available() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

/// Where a fixture listens; prints as `--admin-address` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A path.
    Unix(PathBuf),
    /// An address and a port; to listen, port 0 is any that is free.
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

impl Address {
    /// Any free port of 127.0.0.1.
    pub fn loopback() -> Self {
        Self::Tcp((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// A port of 127.0.0.1.
    pub fn port(port: u16) -> Self {
        Self::Tcp((Ipv4Addr::LOCALHOST, port).into())
    }

    fn socket(&self) -> io::Result<(Socket, SockAddr)> {
        let (domain, address) = match self {
            Self::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
            Self::Tcp(address) => (Domain::for_address(*address), (*address).into()),
        };
        Ok((Socket::new(domain, Type::STREAM, None)?, address))
    }

    /// Connects. The full backlog of a Unix socket is `WouldBlock` at once, that of a TCP port
    /// `TimedOut`.
    pub fn connect(&self, timeout: Duration) -> io::Result<Socket> {
        let (socket, address) = self.socket()?;
        if matches!(self, Self::Unix(_)) {
            // A connect to a Unix socket knows no time-out.
            socket.set_nonblocking(true)?;
            socket.connect(&address)?;
            socket.set_nonblocking(false)?;
        } else {
            socket.connect_timeout(&address, timeout)?;
        }
        Ok(socket)
    }

    /// Takes the address without listening there, so that connections are refused.
    pub fn bind(&self) -> io::Result<Socket> {
        let (socket, address) = self.socket()?;
        if matches!(self, Self::Tcp(_)) {
            // The port must be free again as soon as the fixture that had it is gone.
            socket.set_reuse_address(true)?;
        }
        socket.bind(&address)?;
        Ok(socket)
    }
}

/// A thread that accepts and one for each connection, all of which end with this value.
#[derive(Debug)]
pub struct Server {
    address: Address,
    listener: Arc<Socket>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address`; `handle` is given each connection, which is closed when it returns.
    pub fn start(
        address: &Address,
        handle: impl Fn(&Socket) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = Arc::new(address.bind()?);
        listener.listen(128)?;
        let address = match listener.local_addr()?.as_socket() {
            Some(bound) => Address::Tcp(bound),
            None => address.clone(),
        };
        let accepting = Some(thread::spawn({
            let listener = Arc::clone(&listener);
            move || accept(&listener, &handle)
        }));
        Ok(Self { address, listener, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

/// Serves until the listener has been shut down, then ends what is still open.
fn accept(listener: &Socket, handle: &(impl Fn(&Socket) + Sync)) {
    thread::scope(|scope| {
        // Weak: a connection is closed, or reset, at the moment its own thread lets go of it.
        let mut open: Vec<Weak<Socket>> = Vec::new();
        let end = loop {
            match listener.accept() {
                Ok((socket, _)) => {
                    let socket = Arc::new(socket);
                    open.retain(|socket| socket.strong_count() > 0);
                    open.push(Arc::downgrade(&socket));
                    scope.spawn(move || handle(&socket));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        for socket in open.iter().filter_map(Weak::upgrade) {
            let _gone_already = socket.shutdown(Shutdown::Both);
        }
        // EINVAL is what a shut-down listener says.
        assert_eq!(end.kind(), ErrorKind::InvalidInput, "accept: {end}");
    });
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.listener.shutdown(Shutdown::Both);
        if let Some(Err(cause)) = self.accepting.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            panic::resume_unwind(cause);
        }
    }
}

/// An HTTP answer that came whole.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Status line and headers, as sent.
    pub head: String,
    /// The body, without its chunks' frames.
    pub body: String,
}

impl Response {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// `None` while more is to come.
    fn parse(bytes: &[u8], ended: bool) -> io::Result<Option<Self>> {
        let Some(end) = find(bytes, b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, head.clone()))?;
        let mut response = Self { status, head, body: String::new() };
        let rest = &bytes[end + 4..];
        let length = response.header("content-length").map(str::parse);
        let body = if response.header("transfer-encoding") == Some("chunked") {
            unchunk(rest)?
        } else if let Some(length) = length {
            rest.get(..length.map_err(invalid)?).map(<[u8]>::to_vec)
        } else {
            ended.then(|| rest.to_vec())
        };
        Ok(body.map(|body| {
            response.body = String::from_utf8_lossy(&body).into_owned();
            response
        }))
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

fn unchunk(mut rest: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(line) = find(rest, b"\r\n") {
        let size = str::from_utf8(&rest[..line]).map_err(invalid)?;
        let size = usize::from_str_radix(size, 16).map_err(invalid)?;
        let Some(chunk) = rest.get(line + 2..line + 2 + size + 2) else {
            break;
        };
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(&chunk[..size]);
        rest = &rest[line + 2 + size + 2..];
    }
    Ok(None)
}

/// Where `wanted` first begins.
pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|part| part == wanted)
}

/// Reads once, before `deadline`: what is late is `TimedOut`.
pub fn read_before(mut socket: &Socket, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A time-out of zero would be none.
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match socket.read(buffer) {
            // With a time-out, a read is not taken up again by the kernel.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(ErrorKind::TimedOut.into());
            }
            done => return done,
        }
    }
}

/// Reads one answer, and no further.
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

/// One request on a connection of its own.
pub fn request(
    address: &Address,
    method: &str,
    path: &str,
    timeout: Duration,
) -> io::Result<Response> {
    let deadline = Instant::now() + timeout;
    let mut socket = address.connect(timeout)?;
    socket.set_write_timeout(Some(timeout))?;
    let head = "host: localhost\r\nconnection: close\r\ncontent-length: 0";
    socket.write_all(format!("{method} {path} HTTP/1.1\r\n{head}\r\n\r\n").as_bytes())?;
    read_response(&socket, deadline.saturating_duration_since(Instant::now()))
}
