//! Clients of the public port, which say what they like and hear what comes back to its end.

use std::io::{ErrorKind, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::PATIENCE;
use super::net::read_before;

/// A connection to a public port.
#[derive(Debug)]
pub struct Client(Socket);

impl Client {
    /// Connects to an address, from this one if it is given.
    pub fn try_to(to: SocketAddr, from: Option<IpAddr>) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect_timeout(&to.into(), PATIENCE)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Says this from 127.0.0.`host`.
    #[track_caller]
    pub fn from(host: u8, port: u16, bytes: impl AsRef<[u8]>) -> Self {
        // A socket that is bound to no port as yet finds one quicker.
        let from = (host != 1).then(|| Ipv4Addr::new(127, 0, 0, host).into());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let client = Self::try_to(to, from).expect("connect");
        client.say(bytes);
        client
    }

    /// Says this.
    #[track_caller]
    pub fn new(port: u16, bytes: impl AsRef<[u8]>) -> Self {
        Self::from(1, port, bytes)
    }

    /// Says more.
    #[track_caller]
    pub fn say(&self, bytes: impl AsRef<[u8]>) {
        (&self.0).write_all(bytes.as_ref()).expect("send");
    }

    /// Says as much of this as is taken.
    pub fn say_what_is_taken(&self, bytes: &[u8]) {
        let _cut_short = (&self.0).write_all(bytes);
    }

    /// Has nothing more to say.
    #[track_caller]
    pub fn half_close(&self) {
        self.0.shutdown(Shutdown::Write).expect("close a half");
    }

    /// Closes as if it had died, which leaves nothing behind in the kernel.
    #[track_caller]
    pub fn reset(self) {
        self.0.set_linger(Some(Duration::ZERO)).expect("set an option");
    }

    /// Whether an answer, or the end, has come.
    pub fn is_answered(&self) -> bool {
        self.0.set_nonblocking(true).expect("set a mode");
        let n = self.0.peek(&mut [MaybeUninit::uninit()]);
        self.0.set_nonblocking(false).expect("set a mode");
        n.map_or_else(|error| error.kind() != ErrorKind::WouldBlock, |_| true)
    }

    /// Everything to the end of the connection, and whether that was orderly.
    #[track_caller]
    pub fn hear(&self) -> (String, bool) {
        let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
        let orderly = loop {
            match read_before(&self.0, &mut piece, Instant::now() + PATIENCE) {
                Ok(0) => break true,
                Ok(n) => bytes.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break false,
                Err(error) => panic!("{error} behind {:?}", String::from_utf8_lossy(&bytes)),
            }
        };
        (String::from_utf8(bytes).expect("text"), orderly)
    }

    /// The one answer and an orderly end.
    #[track_caller]
    pub fn answer(&self) -> Answer {
        let (text, orderly) = self.hear();
        assert!(orderly, "a reset behind {text:?}");
        Answer::of(&text)
    }
}

/// An answer, as it came.
#[derive(Debug)]
pub struct Answer {
    /// The code and the phrase.
    pub status: String,
    /// The header fields, in their order.
    pub fields: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// Takes it apart.
    #[track_caller]
    pub fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
        let status = status.unwrap_or_else(|| panic!("no status line: {text}")).to_owned();
        let field = |line: &str| line.split_once(": ").map(|(a, b)| (a.to_owned(), b.to_owned()));
        let fields = lines.map(|line| field(line).expect("a field")).collect();
        Self { status, fields, body: body.to_owned() }
    }

    /// Its code alone.
    pub fn code(&self) -> &str {
        &self.status[..3]
    }
}
