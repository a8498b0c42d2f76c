//! A proxy before an admin interface, which records when requests were complete and responses came.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;
use tempfile::TempDir;

use super::http::find;
use super::net::{Address, Server};
use super::{PATIENCE, Timeline, temp_dir};

/// Forwards bytes both ways and records each request's first line, and when responses came. It accepts even when the admin
/// interface refuses; the client then sees a connection that closes.
#[derive(Debug)]
pub struct AdminProxy {
    server: Server,
    requests: Timeline<String>,
    responses: Timeline<()>,
    accepted: Timeline<()>,
    ended: Timeline<()>,
    _dir: TempDir,
}

impl AsRef<Address> for AdminProxy {
    fn as_ref(&self) -> &Address {
        self.admin()
    }
}

impl AdminProxy {
    /// On a Unix socket of its own, before `admin`.
    pub fn unix(admin: &Address) -> Self {
        let dir = temp_dir("admin-proxy");
        Self::start(&Address::Unix(dir.path().join("admin.sock")), admin, dir)
    }

    /// On a free port of 127.0.0.1, before `admin`.
    pub fn tcp(admin: &Address) -> Self {
        Self::start(&Address::loopback(), admin, temp_dir("admin-proxy"))
    }

    fn start(at: &Address, admin: &Address, dir: TempDir) -> Self {
        let requests = Timeline::default();
        let [responses, accepted, ended] = [(); 3].map(|()| Timeline::default());
        let (admin, asked, responded) = (admin.clone(), requests.clone(), responses.clone());
        let (starts, ends) = (accepted.clone(), ended.clone());
        let server = Server::start(at, move |client| {
            starts.push(());
            if let Ok(admin) = admin.connect(PATIENCE) {
                forward(client, &admin, &asked, &responded);
            }
            ends.push(());
        });
        Self { server: server.expect("listen"), requests, responses, accepted, ended, _dir: dir }
    }

    /// As `--admin-address` takes it.
    pub fn admin_address(&self) -> String {
        self.server.address().to_string()
    }

    pub fn admin(&self) -> &Address {
        self.server.address()
    }

    /// The first line of each request, and when the request was complete.
    pub fn requests(&self) -> Vec<(Instant, String)> {
        self.requests.all()
    }

    /// How long the admin interface has taken for the requests since then, up to the first piece of each
    /// response.
    pub fn took_since(&self, since: Instant) -> Duration {
        let responses = self.responses.all();
        let took = |asked| Some(responses.iter().find(|(at, ())| *at >= asked)?.0 - asked);
        let asked = self.requests().into_iter().map(|(at, _)| at);
        asked.filter(|at| *at >= since).filter_map(took).sum()
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.accepted.all().len()
    }

    /// How many of these have ended.
    pub fn ended_connections(&self) -> usize {
        self.ended.all().len()
    }

    /// When the first request came whose first line starts like this.
    #[track_caller]
    pub fn wait_for(&self, start: &str) -> Instant {
        match self.requests.nth(1, PATIENCE, |line| line.starts_with(start)) {
            Some(at) => at,
            None => panic!("no {start:?} in {:#?}", self.requests()),
        }
    }
}

fn forward(client: &Socket, admin: &Socket, requests: &Timeline<String>, responses: &Timeline<()>) {
    thread::scope(|scope| {
        scope.spawn(|| pump(admin, client, |_| responses.push(())));
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

/// Forwards one way until either side ends, and then ends both.
pub fn pump(mut from: &Socket, mut to: &Socket, mut observe: impl FnMut(&[u8])) {
    let mut buffer = [0; 8192];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        observe(&buffer[..n]);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    // Both directions: Envoy, too, takes the end of a client's input for a disconnect, and a frozen
    // Envoy must not keep the other direction's thread.
    for socket in [from, to] {
        let _closed_before = socket.shutdown(Shutdown::Both);
    }
}
