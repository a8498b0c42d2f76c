//! Connections to Unix sockets and over TCP, made in bounded time.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};

use super::socket_timeout;
use crate::os::supervisor::bounded;

/// A `connect` to a Unix socket takes microseconds, unless its owner has stopped accepting.
const MAX_CONNECT: Duration = Duration::from_secs(10);

/// Connects to a Unix socket, in 10 s or less.
///
/// # Errors
/// As `connect(2)`; `TimedOut` when the backlog stays full for as long as `timeout`.
pub fn connect_unix(path: &Path, timeout: Duration) -> io::Result<OwnedFd> {
    connect_to(&UnixAddr::new(path)?, timeout)
}

/// The same to a name in the abstract namespace.
///
/// # Errors
/// The same.
pub fn connect_abstract(name: &str, timeout: Duration) -> io::Result<OwnedFd> {
    connect_to(&UnixAddr::new_abstract(name.as_bytes())?, timeout)
}

fn connect_to(address: &UnixAddr, timeout: Duration) -> io::Result<OwnedFd> {
    let mut left = timeout.min(MAX_CONNECT);
    let deadline = Instant::now() + left;
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    loop {
        // The kernel applies a send timeout to connect too.
        setsockopt(&fd, sockopt::SendTimeout, &socket_timeout(Some(left)))?;
        match connect(fd.as_raw_fd(), address) {
            Ok(()) => return Ok(fd),
            Err(Errno::EINTR) => left = time_left(deadline)?,
            Err(Errno::EAGAIN) => return Err(ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Connects to the first address of a host that takes the connection, in 10 s or less.
///
/// # Errors
/// `ConnectionRefused` where nothing listens at any of its addresses; `TimedOut` where one of them is
/// silent; as `connect(2)`, or when the name has no address.
pub fn connect_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + timeout.min(MAX_CONNECT);
    let addresses = addresses(host, port, time_left(deadline)?)?;
    let stream = connect_any(&addresses, deadline, &mut TcpStream::connect_timeout)?;
    stream.set_nodelay(true)?;
    Ok(stream.into())
}

/// The first connection of those that `connect` makes.
///
/// # Errors
/// Of several addresses' errors the one that says least about a dead Envoy: a refusal only where all
/// refuse.
fn connect_any<T>(
    addresses: &[SocketAddr],
    deadline: Instant,
    connect: &mut dyn FnMut(&SocketAddr, Duration) -> io::Result<T>,
) -> io::Result<T> {
    let mut failure = io::Error::other("the name has no address");
    for (index, address) in addresses.iter().enumerate() {
        // Each gets its share of what is left, so that a silent one does not use up all of it.
        let share = time_left(deadline)? / u32::try_from(addresses.len() - index).unwrap_or(1);
        let error = match connect(address, share) {
            Ok(stream) => return Ok(stream),
            Err(error) if is_absent(&error, address) => ErrorKind::ConnectionRefused.into(),
            Err(error) => error,
        };
        if index == 0 || doubt(&error) > doubt(&failure) {
            failure = error;
        }
    }
    Err(failure)
}

/// Whether this host has no such address, as with IPv6 off, so that nothing listens there.
fn is_absent(error: &io::Error, address: &SocketAddr) -> bool {
    const NO_SUCH_ADDRESS: [Option<i32>; 2] =
        [Some(Errno::EADDRNOTAVAIL as i32), Some(Errno::EAFNOSUPPORT as i32)];
    address.ip() == Ipv6Addr::LOCALHOST && NO_SUCH_ADDRESS.contains(&error.raw_os_error())
}

/// How much doubt an error leaves whether Envoy has ended.
fn doubt(error: &io::Error) -> u8 {
    match error.kind() {
        ErrorKind::ConnectionRefused => 0,
        ErrorKind::TimedOut => 2,
        _ => 1,
    }
}

/// Whether a look-up is under way.
static LOOK_UP: AtomicBool = AtomicBool::new(false);

struct LookUpEnded;

impl Drop for LookUpEnded {
    fn drop(&mut self) {
        LOOK_UP.store(false, Ordering::Release);
    }
}

fn addresses(host: &str, port: u16, timeout: Duration) -> io::Result<Vec<SocketAddr>> {
    let at = |ip: IpAddr| SocketAddr::new(ip, port);
    if let Ok(literal) = host.parse() {
        return Ok(vec![at(literal)]);
    }
    if host == "localhost" {
        return Ok(vec![at(Ipv6Addr::LOCALHOST.into()), at(Ipv4Addr::LOCALHOST.into())]);
    }
    // A look-up cannot be ended, and a name server may keep it for minutes: one thread is enough.
    if LOOK_UP.swap(true, Ordering::AcqRel) {
        return Err(io::Error::other(format!("an earlier look-up of {host} has not ended")));
    }
    let found = Arc::new(Mutex::new(Vec::new()));
    let (name, its_found, ended) = (host.to_owned(), Arc::clone(&found), LookUpEnded);
    let resolve = move || {
        let _ended = ended;
        let found = (name.as_str(), port).to_socket_addrs();
        let unknown = |error| format!("the name {name} cannot be resolved ({error})");
        let addresses = found.map_err(|error| io::Error::other(unknown(error)))?.collect();
        *its_found.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
        Ok(())
    };
    bounded("look-up", timeout, Box::new(resolve))?;
    Ok(std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// What is left until then.
///
/// # Errors
/// `TimedOut` when nothing is.
pub fn time_left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

#[cfg(test)]
mod tests;
