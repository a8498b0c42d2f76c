//! `ureq` over the sockets of this program: Unix and TCP.
//!
//! Every wait is bounded by the time that is left of the whole call, also where std has no timeout
//! for it: a `connect` to a Unix socket whose backlog is full, a read that a signal interrupts,
//! the look-up of a name.

mod connect;

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use ureq::Agent;
use ureq::http::{self, HeaderMap, HeaderValue, Method, Version, header};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

pub use self::connect::connect_unix;
use self::connect::{connect_abstract, connect_tcp, time_left};
use crate::cli::address::AdminAddress;

/// Why a request has no complete response.
#[derive(Debug)]
pub enum Error {
    /// It did not come in time, or the server's backlog was full for that long.
    Timeout,
    /// The connection could not be made, or was lost.
    Io(io::Error),
    /// It is not HTTP, or has no length by which its end is known.
    Protocol(String),
    /// The caller accepted no more of its body.
    TooLong,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("no complete response in time"),
            Self::Io(error) => error.fmt(f),
            Self::Protocol(what) => write!(f, "not a complete HTTP response ({what})"),
            Self::TooLong => f.write_str("the response is too long"),
        }
    }
}

impl From<ureq::Error> for Error {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::Timeout(_) => Self::Timeout,
            ureq::Error::Io(error) => Self::Io(error),
            // Without the length, which differs each time: the log counts equal errors.
            ureq::Error::LargeResponseHeader(..) => {
                Self::Protocol("its header is too long".to_owned())
            }
            other => Self::Protocol(other.to_string()),
        }
    }
}

/// Whether the process at the other end of a connection may be believed, or why not.
pub type PeerCheck = fn(&OwnedFd) -> io::Result<()>;

/// Any process may.
pub fn any_peer(_: &OwnedFd) -> io::Result<()> {
    Ok(())
}

/// Sends one request without a body over a connection of its own, passes the response's status and
/// each piece of its body to `on_body` until that returns false, and returns the status.
///
/// No proxy, no redirects, and any status is a response.
///
/// # Errors
/// When there is no complete response within `timeout`, or `on_body` returns false.
pub fn request(
    address: &AdminAddress,
    check: PeerCheck,
    method: &str,
    path: &str,
    timeout: Option<Duration>,
    on_body: &mut dyn FnMut(u16, &[u8]) -> bool,
) -> Result<u16, Error> {
    let config = Agent::config_builder()
        .max_redirects(0)
        .http_status_as_error(false)
        // The default is read from the environment.
        .proxy(None)
        .input_buffer_size(8 * 1024)
        // The request line must fit into it, and each header.
        .output_buffer_size(4 * 1024 + path.len())
        // It must be less than the buffer, or a longer header looks like a closed connection.
        .max_response_header_size(4 * 1024)
        .timeout_global(timeout)
        .build();
    let host = match address {
        AdminAddress::Unix(_) | AdminAddress::Abstract(_) => "localhost".to_owned(),
        AdminAddress::Tcp(..) => address.to_string(),
    };
    let mut request = http::Request::new(());
    let uri = format!("http://{host}{path}").try_into();
    *request.uri_mut() = uri.map_err(|_| Error::Protocol(format!("{path} is no path")))?;
    let fields = request.headers_mut();
    fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if method == "POST" {
        // Without it ureq sends an empty body as chunked.
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        *request.method_mut() = Method::POST;
    }
    let response = Agent::with_parts(config, AdminConnector(address.clone(), check), FixedResolver)
        .run(request)?;
    let status = response.status().as_u16();
    if let Err(reason) = check_framing(response.version(), response.headers()) {
        return Err(Error::Protocol(reason.to_owned()));
    }
    let mut body = response.into_body().into_reader();
    let mut piece = [0; 4096];
    loop {
        match body.read(&mut piece).map_err(ureq::Error::from)? {
            0 => return Ok(status),
            length if on_body(status, &piece[..length]) => {}
            _ => return Err(Error::TooLong),
        }
    }
}

/// Whether the end of a body differs from a connection that was cut: `ureq` also takes what only
/// the end of the connection bounds, such as `Transfer-Encoding: identity`.
fn check_framing(version: Version, headers: &HeaderMap) -> Result<(), &'static str> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match ((lengths.next(), lengths.next()), (encodings.next(), encodings.next())) {
        ((None, _), (None, _)) => Err("it has no length"),
        ((Some(_), _), (Some(_), _)) => Err("it has both a length and a transfer encoding"),
        ((Some(length), None), _) if length.as_bytes().iter().all(u8::is_ascii_digit) => Ok(()),
        ((Some(_), _), _) => Err("its length is not one number"),
        (_, (Some(encoding), None)) if encoding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            match version {
                Version::HTTP_11 => Ok(()),
                _ => Err("it is chunked, which HTTP/1.0 has not"),
            }
        }
        _ => Err("its transfer encoding is not chunked alone"),
    }
}

/// The value of a socket's timeout; zero would be none.
fn socket_timeout(left: Option<Duration>) -> TimeVal {
    let micros = left.map_or(0, |left| left.as_micros().clamp(1, i64::MAX as u128) as i64);
    TimeVal::new(micros / 1_000_000, micros % 1_000_000)
}

#[derive(Debug)]
struct AdminConnector(AdminAddress, PeerCheck);

impl Connector for AdminConnector {
    type Out = Stream;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _: Option<()>,
    ) -> Result<Option<Stream>, ureq::Error> {
        let timeout = *details.timeout.after;
        let fd = match &self.0 {
            AdminAddress::Unix(path) => connect_unix(path, timeout),
            AdminAddress::Abstract(name) => connect_abstract(name, timeout),
            AdminAddress::Tcp(host, port) => connect_tcp(host, *port, timeout),
        };
        let checked = fd.and_then(|fd| (self.1)(&fd).map(|()| fd));
        let fd = checked.map_err(|error| to_ureq(error, details.timeout))?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Stream { fd, buffers }))
    }
}

struct Stream {
    fd: OwnedFd,
    buffers: LazyBuffers,
}

// Derived, it would be 1 kB of the program.
impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl Transport for Stream {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let deadline = deadline(timeout);
        let mut output = &self.buffers.output()[..amount];
        while !output.is_empty() {
            let sent = retrying(deadline, |left| {
                setsockopt(&self.fd, sockopt::SendTimeout, &left)?;
                send(self.fd.as_raw_fd(), output, MsgFlags::MSG_NOSIGNAL)
            });
            output = &output[sent.map_err(|error| to_ureq(error, timeout))?..];
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let input = self.buffers.input_append_buf();
        let received = retrying(deadline(timeout), |left| {
            setsockopt(&self.fd, sockopt::ReceiveTimeout, &left)?;
            recv(self.fd.as_raw_fd(), input, MsgFlags::empty())
        });
        let amount = received.map_err(|error| to_ureq(error, timeout))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Connections are not pooled.
        false
    }
}

/// `ureq`'s "not happening" overflows an `Instant`.
fn deadline(timeout: NextTimeout) -> Option<Instant> {
    (!timeout.after.is_not_happening()).then(|| Instant::now() + *timeout.after)
}

fn retrying(
    deadline: Option<Instant>,
    mut attempt: impl FnMut(TimeVal) -> nix::Result<usize>,
) -> io::Result<usize> {
    loop {
        match attempt(socket_timeout(deadline.map(time_left).transpose()?)) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(ErrorKind::TimedOut.into()),
            result => return Ok(result?),
        }
    }
}

fn to_ureq(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    }
}

/// The connector has its address; `ureq` needs one from a resolver too.
#[derive(Debug)]
struct FixedResolver;

impl Resolver for FixedResolver {
    fn resolve(
        &self,
        _: &ureq::http::Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests;
