//! Addresses of both kinds, and a threaded server that listens at one.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::panic;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

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
        self.connect_from(None, timeout)
    }

    /// The same from this address of the client, if one is given.
    pub fn connect_from(&self, from: Option<IpAddr>, timeout: Duration) -> io::Result<Socket> {
        let (socket, address) = self.socket()?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        if matches!(self, Self::Unix(_)) {
            // A connect to a Unix socket has no time-out.
            socket.set_nonblocking(true)?;
            socket.connect(&address)?;
            socket.set_nonblocking(false)?;
        } else {
            socket.connect_timeout(&address, timeout)?;
            // Tests send a request in pieces.
            socket.set_tcp_nodelay(true)?;
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
        // Weak: a connection is closed, or reset, at the moment its own thread drops it.
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
        // EINVAL is what a shut-down listener returns.
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
