//! A server of `tiny_http` with a single connection, which no other process can reach.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::panic::catch_unwind;

use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, bind, connect, getsockname,
    listen, shutdown, socket,
};
use tiny_http::Server;

/// The client's end of the connection. The server ends with it.
pub struct Wire {
    pub stream: OwnedFd,
    server: Option<&'static Server>,
}

impl Wire {
    /// A wire to a server of its own, on which requests come to be handled.
    ///
    /// # Errors
    /// When descriptors or threads are lacking.
    pub fn open() -> io::Result<(Self, &'static Server)> {
        let (listener, stream) = connected()?;
        // It panics when it cannot start a thread.
        let server = catch_unwind(|| Server::from_listener(listener, None));
        let server = server.map_err(|_| io::Error::other("its thread cannot be started"))?;
        // It is never dropped, since that would connect to the listener's path, and it has none.
        let server = &*Box::leak(Box::new(server.map_err(io::Error::other)?));
        Ok((Self { stream, server: Some(server) }, server))
    }
}

/// A wire to something else than a server.
#[cfg(test)]
impl From<OwnedFd> for Wire {
    fn from(stream: OwnedFd) -> Self {
        Self { stream, server: None }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(server) = self.server {
            server.unblock();
        }
    }
}

/// A listener with one connection to accept and no other ever, and the client's end of that.
///
/// Its name is the kernel's choice (autobind, unix(7)), so nothing is left on disk. Its backlog holds
/// one connection, and after its shutdown it takes no other, so no process can have come before or can
/// come after. Once the one is accepted, `accept` fails, which ends tiny_http's thread for it and, 5 s
/// later, those that it keeps for further connections.
fn connected() -> io::Result<(UnixListener, OwnedFd)> {
    let new = |flags| socket(AddressFamily::Unix, SockType::Stream, flags, None);
    let listener = new(SockFlag::SOCK_CLOEXEC)?;
    bind(listener.as_raw_fd(), &UnixAddr::new_unnamed())?;
    listen(&listener, Backlog::new(0)?)?;
    let stream = new(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    connect(stream.as_raw_fd(), &getsockname::<UnixAddr>(listener.as_raw_fd())?)?;
    shutdown(listener.as_raw_fd(), Shutdown::Both)?;
    Ok((listener.into(), stream))
}
