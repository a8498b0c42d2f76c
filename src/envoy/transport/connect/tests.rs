use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::*;

/// Longer than anything takes; only a failing test waits for so long.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn what_takes_no_time_is_done_however_late_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let _listener = UnixListener::bind(&path).unwrap();
    assert!(connect_unix(&path, Duration::ZERO).is_ok());
}

#[test]
fn an_envoy_is_refused_only_if_every_address_refuses() {
    use Errno::{EADDRNOTAVAIL, EAFNOSUPPORT, ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT};
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 9001));
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 9001));
    let outside = SocketAddr::from(([10, 0, 0, 1], 9001));
    for (failures, expected) in [
        (vec![(v4, ECONNREFUSED)], ECONNREFUSED),
        (vec![(v6, ECONNREFUSED), (v4, ECONNREFUSED)], ECONNREFUSED),
        // IPv6 is off.
        (vec![(v6, EADDRNOTAVAIL), (v4, ECONNREFUSED)], ECONNREFUSED),
        (vec![(v6, EAFNOSUPPORT), (v4, ECONNREFUSED)], ECONNREFUSED),
        (vec![(v6, EADDRNOTAVAIL), (v4, ETIMEDOUT)], ETIMEDOUT),
        (vec![(v6, ECONNREFUSED), (v4, ETIMEDOUT)], ETIMEDOUT),
        (vec![(v6, ECONNREFUSED), (outside, ENETUNREACH)], ENETUNREACH),
        (vec![(v6, ETIMEDOUT), (outside, ENETUNREACH)], ETIMEDOUT),
        (vec![(v6, ECONNREFUSED), (v4, ETIMEDOUT), (outside, ENETUNREACH)], ETIMEDOUT),
        // Elsewhere it may be for want of a free port, or of a route.
        (vec![(v4, EADDRNOTAVAIL), (v6, ECONNREFUSED)], EADDRNOTAVAIL),
        (vec![(v6, ECONNREFUSED), (outside, EAFNOSUPPORT)], EAFNOSUPPORT),
    ] {
        let reversed: Vec<_> = failures.iter().copied().rev().collect();
        for failures in [failures, reversed] {
            let addresses: Vec<_> = failures.iter().map(|(address, _)| *address).collect();
            let mut next = failures.iter();
            let mut connect = |_: &SocketAddr, _| {
                let (_, errno) = next.next().unwrap();
                Err::<(), _>(io::Error::from_raw_os_error(*errno as i32))
            };
            let deadline = Instant::now() + PATIENCE;
            let error = connect_any(&addresses, deadline, &mut connect).unwrap_err();
            let expected = io::Error::from_raw_os_error(expected as i32);
            assert_eq!(error.kind(), expected.kind(), "{failures:?}");
        }
    }
    // Of two that leave the same doubt the first is shown.
    let mut next = [ENETUNREACH, EHOSTUNREACH].into_iter();
    let mut connect =
        |_: &SocketAddr, _| Err::<(), _>(io::Error::from_raw_os_error(next.next().unwrap() as i32));
    let error = connect_any(&[outside, v4], Instant::now() + PATIENCE, &mut connect).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(ENETUNREACH as i32), "{error}");
    let nowhere = connect_any(&[], Instant::now() + PATIENCE, &mut |_, _| Ok(()));
    assert!(nowhere.unwrap_err().to_string().contains("has no address"));
}

#[test]
fn each_address_has_its_share_of_the_time() {
    let addresses = [1, 2, 3, 4].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let mut shares = Vec::new();
    let mut connect = |_: &SocketAddr, share| {
        shares.push(share);
        Err::<(), _>(ErrorKind::TimedOut.into())
    };
    assert!(connect_any(&addresses, Instant::now() + PATIENCE, &mut connect).is_err());
    // No time passes in this test, or little.
    for (share, part) in shares.iter().zip([4, 3, 2, 1]) {
        assert!(*share <= PATIENCE / part && *share > PATIENCE / part / 2, "{shares:?}");
    }
    assert_eq!(shares.len(), 4);
}

/// A port at which `[::1]` is silent, since its backlog is full, and one socket for each that fills
/// it; none where this host has no IPv6.
fn silent_ipv6() -> Option<(u16, Vec<socket2::Socket>)> {
    use socket2::{Domain, Socket, Type};
    let new = || Socket::new(Domain::IPV6, Type::STREAM, None);
    let listener = new().ok()?;
    listener.set_only_v6(true).unwrap();
    listener.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into()).ok()?;
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let port = address.as_socket_ipv6().unwrap().port();
    let mut sockets = vec![listener];
    loop {
        let socket = new().unwrap();
        match socket.connect_timeout(&address, Duration::from_millis(100)) {
            Ok(()) => sockets.push(socket),
            Err(_) => return Some((port, sockets)),
        }
        assert!(sockets.len() < 10, "the backlog does not get full");
    }
}

#[test]
fn a_silent_ipv6_address_neither_keeps_from_ipv4_nor_looks_refused() {
    let Some((port, _sockets)) = silent_ipv6() else {
        return println!("SKIPPED: this host has no IPv6");
    };
    // No other process has this port for IPv4, unless by chance.
    let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) else {
        return println!("SKIPPED: port {port} is taken");
    };
    let connect = || connect_tcp("localhost", port, Duration::from_secs(1));
    let started = Instant::now();
    assert!(connect().is_ok());
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    drop(listener);
    assert_eq!(connect().unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn an_abstract_name_is_connected_to_and_refuses_where_nothing_listens() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = format!("/envoy-shutdown-manager/{}", std::process::id());
    let connect = || connect_abstract(&name, Duration::from_secs(5));
    assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    connect().unwrap();
    listener.accept().unwrap();
}
