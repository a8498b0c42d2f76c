//! The clients that are connected to Envoy when its pod is deleted, and one that connects later.

use std::time::Duration;

use crate::support::client::Connection;
use crate::support::envoy::Envoy;
use crate::support::envoy_clients::{Http2, KeptAlive};

/// A client with one open connection, which the client itself closes.
#[derive(Debug)]
pub enum Client {
    /// HTTP/1.1 between two requests.
    Idle(KeptAlive),
    /// HTTP/1.1 with a request in flight.
    Busy(KeptAlive),
    Http2(Http2),
    /// Through the TCP proxy to a server that echoes.
    Tcp(Connection),
}

pub const ALL: usize = 5;

/// Connects three HTTP and two TCP clients, in the order in which they will disconnect.
pub fn connect(envoy: &Envoy) -> [Client; ALL] {
    let (http, tcp) = (envoy.port("http"), envoy.port("tcp"));
    let busy = KeptAlive::open(http);
    busy.start("/hold");
    let (first, second) = (Connection::open(tcp), Connection::open(tcp));
    assert!(first.echoes() && second.echoes(), "the TCP proxy does not echo");
    [
        Client::Tcp(first),
        Client::Idle(KeptAlive::open(http)),
        Client::Http2(Http2::open(http)),
        Client::Busy(busy),
        Client::Tcp(second),
    ]
}

/// Connects a client during the drain, and describes the response to it.
pub fn new_client(envoy: &Envoy) -> String {
    let client = Connection::open(envoy.port("http"));
    client.send(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let response = client.response();
    let connection = response.header("connection").unwrap_or("none");
    format!("a new client is still served: {} with \"connection: {connection}\"", response.status)
}

impl Client {
    /// Uses the connection once more and closes it. An error if it was cut before.
    pub fn disconnect(mut self) -> Result<String, String> {
        let (kind, connection): (_, &Connection) = match &self {
            Self::Idle(client) => ("HTTP/1.1", client),
            Self::Busy(client) => ("HTTP/1.1, request in flight", client),
            Self::Http2(client) => ("HTTP/2", client),
            Self::Tcp(client) => ("TCP", client),
        };
        if connection.peer_closed_within(Duration::ZERO) {
            return Err(format!("a connection was cut: {kind}"));
        }
        let result = match &mut self {
            Self::Idle(client) => {
                let response = client.request("/");
                let connection = response.header("connection").unwrap_or("none");
                format!("{} with \"connection: {connection}\"", response.status)
            }
            Self::Busy(_) => "still open".to_owned(),
            Self::Http2(client) => {
                format!("200 with{} GOAWAY", if client.request() { "" } else { "out" })
            }
            Self::Tcp(client) if client.echoes() => "still echoes".to_owned(),
            Self::Tcp(_) => return Err("the TCP proxy does not echo any more".to_owned()),
        };
        Ok(format!("{kind}: {result}; disconnects"))
    }
}
