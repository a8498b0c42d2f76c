//! The addresses of Envoy's admin interface and of the public port, as the command line has them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

/// The longest path that fits into a Unix socket's address (`sun_path`, with its final NUL).
pub const MAX_SOCKET_PATH: usize = 107;

/// The address of Envoy's admin interface, as `--admin-address` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A Unix socket's name in Linux's abstract namespace, which has no file.
    Abstract(String),
    /// A host name or literal address (IPv6 without brackets), and a port.
    Tcp(String, u16),
}

impl AdminAddress {
    /// Parses `/admin/admin.sock`, `unix:PATH`, `@NAME`, `HOST:PORT` or `[::1]:PORT`. A name has the @
    /// before it that Envoy's `pipe` wants.
    ///
    /// # Errors
    /// A clause that fits behind "is", when the text is none of these.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.contains("://") {
            return Err("a URL; write HOST:PORT or a path");
        }
        if let Some(name) = text.strip_prefix("unix:").unwrap_or(text).strip_prefix('@') {
            socket_path(name)?;
            return Ok(Self::Abstract(name.to_owned()));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path);
        }
        if text.contains('/') {
            return unix(text);
        }
        let (host, port) =
            text.rsplit_once(':').ok_or("neither a path (with a /, or unix:PATH) nor HOST:PORT")?;
        let port = match port.parse::<u16>() {
            Ok(port) if port > 0 && port.to_string().len() == text.len() - host.len() - 1 => port,
            _ => return Err("without a port from 1 to 65535 behind the last colon"),
        };
        if let Some(literal) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            literal.parse::<Ipv6Addr>().map_err(|_| "without an IPv6 address in its brackets")?;
            return Ok(Self::Tcp(literal.to_owned(), port));
        }
        if host.contains(':') {
            return Err("an IPv6 address without brackets; write [ADDRESS]:PORT");
        }
        let of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.chars().all(of_a_name) {
            return Err("without a host name or address before the port");
        }
        Ok(Self::Tcp(host.to_owned(), port))
    }

    /// Whether both mean the same Envoy, which listens at `localhost` by either family. Of a Unix
    /// socket, see [`crate::control_socket::resolve_admin`] first.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(host, port), Self::Tcp(other, other_port)) => {
                port == other_port && is_same_host(host, other)
            }
            _ => self == other,
        }
    }
}

fn is_same_host(host: &str, other: &str) -> bool {
    let ipv6 = |host: &str| host.parse::<Ipv6Addr>().ok();
    // 127.0.0.2 is another: two Envoys may have a port on two addresses of the loopback interface.
    let is_localhost = |host: &str| {
        host.eq_ignore_ascii_case("localhost")
            || host == "127.0.0.1"
            || ipv6(host) == Some(Ipv6Addr::LOCALHOST)
    };
    host.eq_ignore_ascii_case(other)
        || is_localhost(host) && is_localhost(other)
        || ipv6(host).is_some_and(|ip| ipv6(other) == Some(ip))
}

fn unix(path: &str) -> Result<AdminAddress, &'static str> {
    socket_path(path).map(AdminAddress::Unix)
}

/// Checks that a path can be a Unix socket's.
///
/// # Errors
/// A clause that fits behind "is", when the path is empty, too long, or holds a NUL.
pub fn socket_path(path: &str) -> Result<PathBuf, &'static str> {
    match path.len() {
        0 => Err("an empty path"),
        1..=MAX_SOCKET_PATH if path.contains('\0') => Err("a path with a NUL in it"),
        1..=MAX_SOCKET_PATH => Ok(PathBuf::from(path)),
        _ => Err("a path longer than the 107 bytes that a Unix socket's address holds"),
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => {
                let path = path.to_string_lossy();
                // Without a prefix it would read as HOST:PORT, or its own beginning as the prefix.
                let prefix =
                    if !path.contains('/') || path.starts_with("unix:") { "unix:" } else { "" };
                write!(f, "{prefix}{path}")
            }
            Self::Abstract(name) => write!(f, "@{name}"),
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// The address of the public port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeAt {
    /// As it was given; none is all of IPv6 and IPv4.
    pub address: Option<String>,
    /// 0 is any free port.
    pub port: u16,
}

impl ServeAt {
    /// The address that a text stands for, with or without the brackets of IPv6.
    ///
    /// # Errors
    /// The rest of a sentence that begins with the text, when it is none.
    pub fn parse(text: &str) -> Result<IpAddr, &'static str> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        bare.unwrap_or(text).parse().map_err(|_| "not an IP address")
    }
}

impl fmt::Display for ServeAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address.as_deref().unwrap_or("*"), self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_paths_names_and_literal_addresses() {
        let unix = |path: &str| Ok(AdminAddress::Unix(path.into()));
        let abstract_name = |name: &str| Ok(AdminAddress::Abstract(name.to_owned()));
        let tcp = |host: &str, port| Ok(AdminAddress::Tcp(host.to_owned(), port));
        for (text, expected) in [
            ("/admin/admin.sock", unix("/admin/admin.sock")),
            ("./admin.sock", unix("./admin.sock")),
            ("unix:admin.sock", unix("admin.sock")),
            ("unix:/admin/admin.sock", unix("/admin/admin.sock")),
            ("unix:unix:/admin.sock", unix("unix:/admin.sock")),
            ("/admin/a:9001", unix("/admin/a:9001")),
            ("@envoy", abstract_name("envoy")),
            ("@/admin/envoy:1", abstract_name("/admin/envoy:1")),
            ("unix:@envoy", abstract_name("envoy")),
            ("./@envoy", unix("./@envoy")),
            ("127.0.0.1:9001", tcp("127.0.0.1", 9001)),
            ("localhost:19000", tcp("localhost", 19000)),
            ("my_envoy-1.svc:1", tcp("my_envoy-1.svc", 1)),
            ("[::1]:65535", tcp("::1", 65535)),
        ] {
            let parsed = AdminAddress::parse(text);
            assert_eq!(parsed, expected, "{text}");
            let again = AdminAddress::parse(&parsed.unwrap().to_string());
            assert_eq!(again, expected, "{text} written and read again");
        }
    }

    #[test]
    fn two_spellings_of_an_address_are_the_same_and_another_host_or_port_is_not() {
        let parse = |text| AdminAddress::parse(text).unwrap();
        for (one, other, same) in [
            ("localhost:1", "localhost:1", true),
            ("localhost:1", "LocalHost:1", true),
            ("localhost:1", "127.0.0.1:1", true),
            ("localhost:1", "[::1]:1", true),
            ("127.0.0.1:1", "[0:0:0:0:0:0:0:1]:1", true),
            ("[::1]:1", "[0::1]:1", true),
            ("[fd00::A]:1", "[fd00:0::a]:1", true),
            ("envoy:1", "ENVOY:1", true),
            ("localhost:1", "localhost:2", false),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("localhost:1", "127.0.0.2:1", false),
            ("127.0.0.2:1", "127.0.0.2:1", true),
            ("[::1]:1", "[::2]:1", false),
            ("localhost:1", "envoy:1", false),
            ("/a/s", "/a/s", true),
            ("/a/s", "unix:/a/s", true),
            ("/a/s", "/b/s", false),
            ("/a/s", "localhost:1", false),
        ] {
            let (a, b) = (parse(one), parse(other));
            assert_eq!((a.is_same(&b), b.is_same(&a)), (same, same), "{one} and {other}");
        }
    }

    #[test]
    fn refuses_the_rest_with_its_reason() {
        for (text, reason) in [
            ("", "neither a path"),
            ("localhost", "neither a path"),
            ("admin.sock", "neither a path"),
            ("http://localhost:9001", "a URL"),
            ("unix:///admin.sock", "a URL"),
            ("@", "an empty path"),
            ("localhost:", "without a port"),
            ("localhost:0", "without a port"),
            ("localhost:+80", "without a port"),
            ("localhost:080", "without a port"),
            ("localhost:65536", "without a port"),
            (":9001", "without a host"),
            ("local host:9001", "without a host"),
            ("a@b:9001", "without a host"),
            ("b\u{fc}cher:9001", "without a host"),
            ("::1:9001", "without brackets"),
            ("[localhost]:9001", "in its brackets"),
            ("[::1:9001", "without brackets"),
            ("unix:", "an empty path"),
            ("/a\0b", "a NUL"),
        ] {
            let error = AdminAddress::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let longest = format!("/{}", "a".repeat(MAX_SOCKET_PATH - 1));
        assert!(AdminAddress::parse(&longest).is_ok());
        assert!(AdminAddress::parse(&format!("{longest}a")).unwrap_err().contains("107 bytes"));
        let longest_name = format!("@{}", "a".repeat(MAX_SOCKET_PATH));
        assert!(AdminAddress::parse(&longest_name).is_ok());
        let error = AdminAddress::parse(&format!("{longest_name}a"));
        assert!(error.as_ref().is_err_and(|error| error.contains("107 bytes")), "{error:?}");
    }
}
