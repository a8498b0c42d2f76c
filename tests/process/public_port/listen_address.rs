//! The address and the port at which the sidecar listens.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::process::Command;

use super::third_party_clients::{output, start_program};
use crate::support::prelude::*;

#[test]
fn the_sidecar_listens_at_the_address_that_is_set_and_at_no_other() {
    let admin = FakeAdmin::unix();
    let (v4, other, v6) = ("127.0.0.1", "127.0.0.2", "::1");
    let ipv6 = ipv6_available();
    if !ipv6 {
        println!("SKIPPED: the half with IPv6, which is not available here");
    }
    // Held on all addresses, so that no other process listens at its number on another one.
    let all = if ipv6 { "[::]:0" } else { "0.0.0.0:0" };
    let held = Address::Tcp(all.parse().expect("an address")).bind().expect("a port");
    let port = held.local_addr().expect("an address").as_socket().expect("a port").port();
    let serve_port = format!("--serve-port={port}");
    for (args, open, shut) in [
        (&[][..], &[v4, other, v6][..], &[][..]),
        (&["--serve-address=127.0.0.1"], &[v4], &[other, v6]),
        (&["--serve-address=0.0.0.0"], &[v4, other], &[v6]),
        (&["--serve-address=::"], &[v4, other, v6], &[]),
        (&["--serve-address=::1"], &[v6], &[v4, other]),
        (&["--serve-address=[::1]"], &[v6], &[v4, other]),
    ] {
        if !ipv6 && args.iter().any(|arg| arg.contains("::")) {
            continue;
        }
        let _sidecar = Sidecar::builder().beside(&admin).args(args).arg(&serve_port).start();
        let at = |host: &str| {
            let address = host.parse::<IpAddr>().expect("an address");
            Client::from(Address::Tcp((address, port).into()))
        };
        let has = |host: &&&str| ipv6 || !host.contains(':');
        for host in open.iter().filter(has) {
            let client = at(host).send(HEALTHZ);
            assert_eq!(client.only_response().body, "OK", "{args:?}: {host}");
        }
        for host in shut.iter().filter(has) {
            let error = at(host).try_connect().err().map(|error| error.kind());
            assert_eq!(error, Some(ErrorKind::ConnectionRefused), "{args:?}: {host}");
        }
    }
}

#[test]
fn ipv4_is_served_where_ipv6_is_switched_off() {
    let inside = |script: &str, command: &[&str]| {
        let script =
            format!("set -e; ip link set lo up; cd /proc/sys/net/ipv6; {script}; exec \"$@\"");
        let wrapper = ["unshare", "--net", "sh", "-c", &script, "sh"].map(str::to_owned);
        wrapper.into_iter().chain(command.iter().map(|&word| word.to_owned())).collect::<Vec<_>>()
    };
    let admin = FakeAdmin::unix();
    for (script, hosts) in [
        ("echo 1 > conf/all/disable_ipv6", &["127.0.0.1"][..]),
        ("echo 1 > bindv6only", &["127.0.0.1", "::1"]),
    ] {
        let tried = inside(script, &["python3", "--version"]);
        let tried = Command::new(&tried[0]).args(&tried[1..]).output();
        if !tried.as_ref().is_ok_and(|output| output.status.success()) {
            println!("SKIPPED: no {script} in a network of its own here: {tried:?}");
            continue;
        }
        let wrapper = inside(script, &[]);
        let sidecar = Sidecar::builder().beside(&admin).under(&wrapper).start();
        let (net, port) = (format!("--net=/proc/{}/ns/net", sidecar.pid()), sidecar.port());
        for host in hosts {
            let get = format!(
                "import http.client; c = http.client.HTTPConnection('{host}', {port}, timeout=20); \
                 c.request('GET', '/healthz'); print(c.getresponse().read())"
            );
            let child = start_program(&["nsenter", &net, "python3", "-c", &get]);
            assert_eq!(output(child.expect("as before")), "b'OK'\n", "{script}: {host}");
        }
    }
}

#[test]
fn a_port_that_is_taken_is_named_and_the_sidecar_does_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = taken.local_addr().expect("an address").port();
    let admin = FakeAdmin::unix();
    for address in [None, Some("127.0.0.1")] {
        let dir = temp_dir("port");
        let stale = dir.path().join("ready");
        fs::write(&stale, "").expect("write");
        let exit = Sidecar::builder()
            .beside(&admin)
            .control_socket(&dir.path().join("control.sock"))
            .arg(format!("--serve-port={port}"))
            .arg(format!("--ready-file={}", stale.display()))
            .args(address.map(|address| format!("--serve-address={address}")))
            .run_to_end();
        assert_eq!((exit.code, exit.output.lines().count()), (Some(1), 1), "{exit:?}");
        let at = format!("cannot serve on {}:{port}: ", address.unwrap_or("*"));
        let words = ["level=error", &at, "another program has it", "set --serve-port"];
        assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
        let left = fs::read_dir(&dir).expect("read").map(|entry| entry.expect("a file").path());
        assert_eq!(left.collect::<Vec<_>>(), [stale]);
    }
    assert_eq!(admin.requests().len(), 0);
}

#[test]
fn a_port_that_this_user_may_not_bind_is_named_with_what_to_set() {
    // In a network of its own, which has the default for who may bind which port.
    let as_user = ["unshare", "--net", "setpriv", "--reuid", "1234", "--clear-groups"];
    let tried = run_under(&as_user, &["--version"]).wait();
    if tried.code != Some(0) {
        return println!("SKIPPED: no other user in a network of its own: {}", tried.output);
    }
    let exit = run_under(&as_user, &["shutdown-manager", "--serve-port=80"]).wait();
    assert_eq!((exit.code, exit.output.lines().count()), (Some(1), 1), "{exit:?}");
    let words = ["cannot serve on *:80: ", "this user may not bind it; set --serve-port to 1024"];
    assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
}
