//! Where the port is, and clients of it that are not ours.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use super::{HEALTHZ, begin_drain, beside, end_drain, under, wait_waiters};
use crate::support::admin::{FakeAdmin, Route};
use crate::support::caller::Client;
use crate::support::net::{Address, ipv6_available};
use crate::support::scene::before;
use crate::support::sidecar::run;
use crate::support::{PATIENCE, shared, temp_dir};

/// Runs what is not ours with these arguments; its stdout, once it has ended well.
fn start_foreign(command: &[&str]) -> Option<Child> {
    let child = Command::new(command[0]).args(&command[1..]).stdout(Stdio::piped()).spawn();
    child.map_err(|error| println!("SKIPPED: no {} here: {error}", command[0])).ok()
}

#[track_caller]
fn output(child: Child) -> String {
    let output = child.wait_with_output().expect("its output");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_port_is_where_it_was_asked_for_and_nowhere_else() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let (v4, other, v6) = ("127.0.0.1", "127.0.0.2", "::1");
    let ipv6 = ipv6_available();
    if !ipv6 {
        println!("SKIPPED: the half with IPv6, which is not here");
    }
    // Held on all addresses, so that nobody else listens at its number on another one.
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
        let _sidecar = before(&admin.address(), &[args, &[&serve_port]].concat());
        let at = |host: &str| (host.parse::<IpAddr>().expect("an address"), port).into();
        let has = |host: &&&str| ipv6 || !host.contains(':');
        for host in open.iter().filter(has) {
            let client = Client::try_to(at(host), None).expect("connect");
            client.say(HEALTHZ);
            assert_eq!(client.answer().body, "OK", "{args:?}: {host}");
        }
        for host in shut.iter().filter(has) {
            let error = Client::try_to(at(host), None).err().map(|error| error.kind());
            assert_eq!(error, Some(ErrorKind::ConnectionRefused), "{args:?}: {host}");
        }
    }
}

#[test]
fn ipv4_is_served_where_ipv6_is_switched_off() {
    let _turn = shared();
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
        let sidecar = under(&wrapper.iter().map(String::as_str).collect::<Vec<_>>(), &admin);
        let (net, port) = (format!("--net=/proc/{}/ns/net", sidecar.pid()), sidecar.port());
        for host in hosts {
            let get = format!(
                "import http.client; c = http.client.HTTPConnection('{host}', {port}, timeout=20); \
                 c.request('GET', '/healthz'); print(c.getresponse().read())"
            );
            let child = start_foreign(&["nsenter", &net, "python3", "-c", &get]);
            assert_eq!(output(child.expect("as before")), "b'OK'\n", "{script}: {host}");
        }
    }
}

#[test]
fn a_port_that_is_taken_is_named_and_nothing_is_done() {
    let _turn = shared();
    let taken = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = taken.local_addr().expect("an address").port();
    let admin = FakeAdmin::unix();
    for address in [None, Some("127.0.0.1")] {
        let dir = temp_dir("port");
        let stale = dir.path().join("ready");
        fs::write(&stale, "").expect("write");
        let mut args = vec![
            "shutdown-manager".to_owned(),
            format!("--serve-port={port}"),
            format!("--admin-address={}", admin.address()),
            format!("--control-socket={}", dir.path().join("control.sock").display()),
            format!("--ready-file={}", stale.display()),
        ];
        args.extend(address.map(|address| format!("--serve-address={address}")));
        let exit = run(&args).wait(PATIENCE);
        assert_eq!((exit.code, exit.output.lines().count()), (Some(1), 1), "{exit:?}");
        let at = format!("cannot serve on {}:{port}: ", address.unwrap_or("*"));
        let words = ["level=error", &at, "another program has it", "set --serve-port"];
        assert!(words.iter().all(|word| exit.output.contains(word)), "{exit:?}");
        let left = fs::read_dir(&dir).expect("look").map(|entry| entry.expect("a file").path());
        assert_eq!(left.collect::<Vec<_>>(), [stale]);
    }
    assert_eq!(admin.requests().len(), 0);
}

#[test]
fn curl_is_served() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let dir = temp_dir("curl");
    // With a large body curl waits for a 100, which never comes; of a small one it sends all.
    let [large, small] = [("large", 2_000_000), ("small", 60_000)].map(|(name, size)| {
        let path = dir.path().join(name);
        fs::write(&path, vec![b'x'; size]).expect("write");
        format!("@{}", path.display())
    });
    let port = sidecar.port();
    let [healthz, drain, shutdown] =
        ["healthz", "drain", "shutdown"].map(|path| format!("http://127.0.0.1:{port}/{path}"));
    let code = "-w%{http_code} %{num_connects}";
    let start = |args: &[&str]| {
        start_foreign(&[&["curl", "--silent", "--show-error", "--max-time", "20"], args].concat())
    };
    for (args, expected) in [
        (&[healthz.as_str(), code][..], "OK200 1"),
        (&["--http1.0", &healthz, code], "OK200 1"),
        (&["--http2", &healthz, code], "OK200 1"),
        (&["--head", "-o/dev/null", &healthz, code], "200 1"),
        (&[&healthz, &healthz], "OKOK"),
        (&["--data", "a=1", &drain, code], "404 Not Found\n404 1"),
        (&["--data-binary", &large, &drain, code], "404 Not Found\n404 1"),
        (&["--data-binary", &large, &healthz, code], "405 Method Not Allowed\n405 1"),
        (&["-T", &small[1..], "-HExpect:", &shutdown, code], "405 Method Not Allowed\n405 1"),
    ] {
        let Some(child) = start(args) else { return };
        assert_eq!(output(child), expected, "{args:?}");
    }
    let waiter = start(&[&shutdown, code]).expect("as before");
    wait_waiters(&sidecar, 1);
    let mut hook = begin_drain(&sidecar, &admin);
    end_drain(&admin, &mut hook);
    assert_eq!(output(waiter), "OK200 1");
    assert_eq!(admin.count(Route::Fail), 1);
}

const HTTP_CLIENT: &str = r#"
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20)
for method, path, body in [
    ("GET", "/healthz", None), ("GET", "/healthz", None), ("HEAD", "/healthz", None),
    ("POST", "/drain", "a=1"), ("PUT", "/healthz", None), ("GET", "/shutdown", None),
]:
    connection.request(method, path, body, {"Connection": "keep-alive"})
    answer = connection.getresponse()
    print(method, answer.status, answer.getheader("Content-Length"), answer.read().decode().strip())
"#;

#[test]
fn pythons_http_client_is_served() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let port = sidecar.port().to_string();
    let Some(child) = start_foreign(&["python3", "-c", HTTP_CLIENT, &port]) else { return };
    wait_waiters(&sidecar, 1);
    let mut hook = begin_drain(&sidecar, &admin);
    end_drain(&admin, &mut hook);
    let lines = output(child);
    let expected = [
        "GET 200 2 OK",
        "GET 200 2 OK",
        "HEAD 200 2 ",
        "POST 404 14 404 Not Found",
        "PUT 405 23 405 Method Not Allowed",
        "GET 200 2 OK",
    ];
    assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
    assert_eq!(admin.count(Route::Fail), 1);
}
