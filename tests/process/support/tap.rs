//! A wire tap before an admin interface, to learn when a request was complete.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;
use tempfile::TempDir;

use super::net::{Address, Server, find};
use super::{PATIENCE, Record, temp_dir};

/// Forwards bytes both ways and notes each request's first line. It accepts even when what is
/// behind it refuses; the client then sees a connection that closes.
#[derive(Debug)]
pub struct Tap {
    server: Server,
    requests: Record<String>,
    _dir: TempDir,
}

impl Tap {
    /// On a Unix socket of its own, before `admin`.
    pub fn unix(admin: &Address) -> Self {
        let dir = temp_dir("tap");
        Self::start(&Address::Unix(dir.path().join("admin.sock")), admin, dir)
    }

    /// On a free port of 127.0.0.1, before `admin`.
    pub fn tcp(admin: &Address) -> Self {
        Self::start(&Address::loopback(), admin, temp_dir("tap"))
    }

    fn start(at: &Address, admin: &Address, dir: TempDir) -> Self {
        let requests = Record::default();
        let (admin, record) = (admin.clone(), requests.clone());
        let server = Server::start(at, move |client| {
            if let Ok(admin) = admin.connect(PATIENCE) {
                forward(client, &admin, &record);
            }
        });
        Self { server: server.expect("listen"), requests, _dir: dir }
    }

    /// As `--admin-address` takes it.
    pub fn address(&self) -> String {
        self.server.address().to_string()
    }

    /// The address as the other fixtures take it.
    pub fn admin(&self) -> &Address {
        self.server.address()
    }

    /// The first line of each request, and when the request was complete.
    pub fn requests(&self) -> Vec<(Instant, String)> {
        self.requests.all()
    }

    /// When the first request came whose first line `wanted` accepts.
    #[track_caller]
    pub fn wait_for(&self, wanted: impl Fn(&str) -> bool, timeout: Duration) -> Instant {
        match self.requests.nth(1, timeout, |line| wanted(line)) {
            Some(at) => at,
            None => panic!("no such request in {:#?}", self.requests()),
        }
    }
}

fn forward(client: &Socket, admin: &Socket, requests: &Record<String>) {
    thread::scope(|scope| {
        scope.spawn(|| pump(admin, client, |_| ()));
        let mut unread = Vec::new();
        pump(client, admin, |bytes| {
            unread.extend_from_slice(bytes);
            // Requests to an admin interface have no body.
            while let Some(end) = find(&unread, b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&unread[..end]).into_owned();
                unread.drain(..end + 4);
                requests.push(head.lines().next().unwrap_or_default().to_owned());
            }
        });
    });
}

fn pump(mut from: &Socket, mut to: &Socket, mut look: impl FnMut(&[u8])) {
    let mut buffer = [0; 8192];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        look(&buffer[..n]);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    // Both ways, for Envoy too takes the end of a client's input for its leave; and an Envoy that
    // is frozen must not keep the other direction's thread.
    for socket in [from, to] {
        let _closed_before = socket.shutdown(Shutdown::Both);
    }
}
