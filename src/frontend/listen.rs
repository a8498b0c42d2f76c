//! What clients connect to: the public port, or the control socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use super::admission::SourceKey;
use super::request::{MAX_CONTROL_HEAD, MAX_PUBLIC_HEAD, Rejection, Request, parse};
use crate::cli::address::ServeAt;
use crate::labels;
use crate::route::{PublicRoute, Route, Unserved};

/// The kernel counts what clients send toward the memory of the container. It makes 8 KiB of this,
/// which is more than a request head.
const RECEIVE_BUFFER: usize = 4096;

labels! {
    /// Which listener a connection came to, with the value of the log's key `listener`. Each has limits of
    /// its own, and their requests to the backend take turns, so that neither keeps the other waiting.
    pub enum ListenerId {
        Control = "control",
        Public = "public",
    }
}

impl ListenerId {
    /// What a client there requests, of its first bytes.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn parse(self, bytes: &[u8]) -> Result<Option<Request>, Rejection> {
        match self {
            Self::Public => parse(bytes, MAX_PUBLIC_HEAD, public_route),
            Self::Control => parse(bytes, MAX_CONTROL_HEAD, Route::parse),
        }
    }
}

/// Of the public port: a [`PublicRoute`] cannot express the start of a drain.
pub fn public_route(method: &str, target: &str) -> Result<Route, Unserved> {
    PublicRoute::parse(method, target).map(Route::from)
}

/// A listener that does not block.
pub enum Listener {
    Public(TcpListener),
    Control(UnixListener),
}

impl Listener {
    /// # Errors
    /// Those of accept(2); `WouldBlock` when no client is there.
    pub fn accept(&self) -> io::Result<(OwnedFd, SourceKey)> {
        Ok(match self {
            Self::Public(listener) => {
                let (stream, address) = listener.accept()?;
                (stream.into(), address.ip().into())
            }
            Self::Control(listener) => (listener.accept()?.0.into(), SourceKey::LOCAL),
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Public(listener) => listener.as_fd(),
            Self::Control(listener) => listener.as_fd(),
        }
    }
}

/// Binds the public port and listens there.
///
/// # Errors
/// A sentence that names the port, when it is taken or may not be used.
pub fn bind_public(at: &ServeAt) -> Result<TcpListener, String> {
    let address = at.address.as_deref().map(ServeAt::parse).transpose()?;
    let bound = match address {
        Some(address) => open(address, at.port),
        // IPv6 may be switched off: no such family, or none of its addresses.
        None => match open(Ipv6Addr::UNSPECIFIED.into(), at.port) {
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
                open(Ipv4Addr::UNSPECIFIED.into(), at.port)
            }
            result => result,
        },
    };
    bound.map_err(|error| {
        let advice = match error {
            Errno::EADDRINUSE => "another program has it; stop that, or set --serve-port",
            Errno::EACCES => "this user may not bind it; set --serve-port to 1024 or more",
            Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT => {
                "this machine has no such address; set --serve-address to one that it has"
            }
            _ => "set --serve-port or --serve-address",
        };
        format!("cannot serve on {at}: {}; {advice}", io::Error::from(error))
    })
}

fn open(address: IpAddr, port: u16) -> nix::Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    // A restarted sidecar must not wait until the kernel forgets the previous run's connections.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        // Whatever the system's default (net.ipv6.bindv6only) is.
        setsockopt(&fd, sockopt::Ipv6V6Only, &!address.ip().is_unspecified())?;
    }
    setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    // As long as the kernel allows: a probe that finds it full connects again only after a second.
    listen(&fd, Backlog::MAXALLOWABLE)?;
    Ok(TcpListener::from(fd))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn at(address: &str, port: u16) -> ServeAt {
        ServeAt { address: (!address.is_empty()).then(|| address.to_owned()), port }
    }

    #[test]
    fn the_default_is_all_addresses_of_both_families() {
        let listener = bind_public(&at("", 0)).unwrap();
        let bound = listener.local_addr().unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, bound.port())).unwrap();
        if bound.is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, bound.port())).unwrap();
        }
    }

    #[test]
    fn one_address_is_bound_alone() {
        let listener = bind_public(&at("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        TcpStream::connect(("127.0.0.2", port)).unwrap_err();
        TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap_err();
    }

    #[test]
    fn what_clients_send_costs_little_memory_of_the_kernel() {
        use nix::sys::socket::getsockopt;
        let listener = bind_public(&at("", 0)).unwrap();
        let address = (Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port());
        let _client = TcpStream::connect(address).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        // A connection has what its listener had when the client connected.
        for (of, fd) in [("the listener", listener.as_fd()), ("a connection", accepted.as_fd())] {
            let size = getsockopt(&fd, sockopt::RcvBuf).unwrap();
            assert_eq!(size, 2 * RECEIVE_BUFFER, "the receive buffer of {of} is not the one set");
        }
    }

    #[test]
    fn an_error_names_the_port_and_what_to_set() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        for (at, start, end) in [
            (at("127.0.0.1", port), format!("cannot serve on 127.0.0.1:{port}: "), "--serve-port"),
            (at("", port), format!("cannot serve on *:{port}: "), "--serve-port"),
            (at("192.0.2.1", 9), "cannot serve on 192.0.2.1:9: ".to_owned(), "one that it has"),
        ] {
            let error = bind_public(&at).unwrap_err();
            assert!(error.starts_with(&start) && error.ends_with(end), "{error}");
        }
    }
}
