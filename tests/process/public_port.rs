//! The public port: its responses, its robustness against its clients, and that no request to it
//! starts a drain.

mod listen_address;
mod third_party_clients;
mod waiting_slots;

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::support::prelude::*;

const PLAIN: &str = "text/plain; charset=utf-8";

/// A sidecar that answers no request by its start timeout, however slow this machine is.
#[track_caller]
fn start(admin: &FakeAdmin) -> Sidecar {
    Sidecar::builder().beside(admin).arg(NO_START_TIMEOUT).start()
}

/// Sends this and reads the only response to it.
#[track_caller]
fn exchange(public: &Client, request: impl AsRef<[u8]>) -> Response {
    public.send(request).only_response()
}

const QUERIES: &str = "? ?? ?drain=1 ?outside ?outside=1 ?check-delay=0 ?expires=18446744073709551615 \
                       ?method=POST ?_method=POST ?%00 ?/../drain ?x=1;drain";

/// How paths are made odd: `P` is a path, `N` one without its first slash, `U` one in capitals and
/// `X` one with an encoded letter.
const ODD: &str = "U X P/ P// /P //P /./N /../N /x/..P /healthz/..P /metrics/../..P P/. P/.. P. \
                   P.json /.N /%2e%2eP /%2E/N /..%2fN %2fN /%2fN /healthz%2f..P P%00 P%00.html \
                   %00P /%00N P%0d%0a P%0d%0aa:%20b P%0a P%20 P%09 P%23 P%3fcheck-delay=0 \
                   P%3Foutside P%2f P%5c \\N /\\N P\\ P; P;a=1 ;P P;/healthz /healthz;P \
                   http://localhostP http://127.0.0.1:8090P https://localhostP unix:P \
                   localhost:8090P localhost:443 * N ?N /?N /?path=P #P /#P P#a P#?a P&a=1 P|a \
                   P\" P' <P> {P} P,P PP P/N P/ready /adminP /envoyP \u{e9}P P\u{e9} \u{ff0f}N \
                   P\u{202e} P%c3%a9 P%c0%af P% P%zz P%u0000 /N+ /~N P:8090 P@a //a@localhostP \
                   P\0 P\u{7f}";
const ODD_SPACES: [&str; 8] = ["P ", " P", "P a", "P\t", "P\r", "P\n", "P\r\na: b", "P\u{a0}"];

fn odd_targets() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for path in PATHS {
        let name = &path[1..];
        let encoded = format!("/%{:02x}{}", name.as_bytes()[0], &name[1..]);
        for odd in ODD.split(' ').chain(ODD_SPACES) {
            let mut target = String::new();
            for letter in odd.chars() {
                match letter {
                    'P' => target += path,
                    'N' => target += name,
                    'U' => target += &path.to_uppercase(),
                    'X' => target += &encoded,
                    other => target.push(other),
                }
            }
            all.insert(target);
        }
        all.extend(QUERIES.split(' ').map(|query| path.to_owned() + query));
        all.insert(path.to_owned() + &"a".repeat(3000));
        all.insert(path.to_owned() + &"a".repeat(6000));
        all.insert("/".repeat(3000) + name);
        all.insert(format!("{path}?{}", "a".repeat(3000)));
    }
    all
}

/// Whole conversations that carry more than one request.
const SMUGGLED: [&str; 6] = [
    "GET /healthz HTTP/1.1\r\n\r\nPOST /drain HTTP/1.1\r\n\r\n",
    "POST /healthz HTTP/1.1\r\nContent-Length: 26\r\n\r\nPOST /drain HTTP/1.1\r\n\r\n",
    "GET /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nPOST /drain HTTP/1.1\r\n\r\n",
    "GET /healthz HTTP/1.1\r\nContent-Length: 0\r\n\r\nPOST /drain HTTP/1.1\r\n\r\n",
    "CONNECT localhost:1 HTTP/1.1\r\n\r\nPOST /drain HTTP/1.1\r\n\r\n",
    "GET /shutdown HTTP/1.1\r\n\r\nPOST /drain HTTP/1.1\r\n\r\n",
];

#[test]
fn no_request_to_the_public_port_starts_a_drain() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let public = sidecar.public();
    // A half-close ends a request that waits, and no other.
    let exchange = |bytes: String| {
        let client = public.send(&bytes);
        client.half_close();
        client.read_to_end().0
    };
    let odd = odd_targets();
    assert!(odd.len() >= 200, "{} paths", odd.len());
    let plain = PATHS.iter().map(|path| (*path).to_owned());
    let plain = plain.chain(QUERIES.split(' ').map(|query| format!("/shutdown{query}")));
    let plain: Vec<_> = plain.chain(["/drain?check-delay=0s".to_owned(), "/".to_owned()]).collect();
    let all = METHODS.split(' ').flat_map(|method| plain.iter().map(move |path| (method, path)));
    let odd =
        ["GET", "POST"].into_iter().flat_map(|method| odd.iter().map(move |path| (method, path)));
    for (method, target) in all.chain(odd) {
        let fields = "Host: localhost\r\nX-HTTP-Method-Override: POST\r\nUpgrade: h2c";
        let response = exchange(format!("{method} {target} HTTP/1.1\r\n{fields}\r\n\r\n"));
        // The absolute form is served as the other (RFC 9112, section 3.2.2).
        let hosts = ["http://localhost", "http://127.0.0.1:8090"];
        let path = hosts.iter().find_map(|host| target.strip_prefix(host)).unwrap_or(target);
        let path = path.split('?').next().unwrap_or_default();
        if matches!(method, "GET" | "HEAD") && ["/shutdown", "/shutdown/ready"].contains(&path) {
            assert_eq!(response, "", "{method} {target:?} did not wait");
        } else {
            let rejected = [400, 404, 405, 431].contains(&Response::of(&response).status);
            assert!(rejected, "{method} {target:?}: {response}");
        }
    }
    for bytes in SMUGGLED {
        let response = exchange(bytes.to_owned());
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{bytes:?}: {response}");
    }
    let status = sidecar.status();
    assert!(status.is_before_the_first_drain() && status.envoy_hooks() == 0, "{status:?}");
    let posts = || admin.requests().iter().filter(|(_, line)| !line.starts_with("GET ")).count();
    assert_eq!(posts(), 0, "{:?}", admin.requests());
    sidecar.assert_not_logged(DRAIN_STARTED);
    assert_drains(&sidecar, &admin);
    assert_eq!(posts(), 1, "{:?}", admin.requests());
}

#[test]
fn a_response_has_all_its_header_fields_and_closes() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let public = sidecar.public();
    // After a drain, a request that waits is answered at once.
    assert_exits(&mut sidecar.hook(&[]), 0, "drained");
    let long = format!("a: {}\r\n", "a".repeat(4096));
    let many = "a: b\r\n".repeat(65);
    for (start, fields, status, body) in [
        ("GET /healthz", "", "200 OK", "OK"),
        ("GET /healthz?verbose", "", "200 OK", "OK"),
        ("GET /shutdown", "", "200 OK", "OK"),
        ("GET /shutdown/ready?a", "", "200 OK", "OK"),
        ("GET /metrics", "", "200 OK", "# HELP envoy_shutdown_"),
        ("GET /", "", "404 Not Found", "404 Not Found\n"),
        ("GET /status", "", "404 Not Found", "404 Not Found\n"),
        ("POST /drain", "", "404 Not Found", "404 Not Found\n"),
        ("POST /healthz", "", "405 Method Not Allowed", "405 Method Not Allowed\n"),
        ("DELETE /metrics", "", "405 Method Not Allowed", "405 Method Not Allowed\n"),
        ("POST /shutdown", "", "405 Method Not Allowed", "405 Method Not Allowed\n"),
        ("get /shutdown", "", "405 Method Not Allowed", "405 Method Not Allowed\n"),
        (
            "GET /healthz",
            "Content-Length: 1\r\n",
            "413 Content Too Large",
            "413 Content Too Large\n",
        ),
        ("GET /shutdown", "Transfer-Encoding: chunked\r\n", "413 Content Too Large", "413 "),
        ("GET /healthz", "Content-Length: -1\r\n", "400 Bad Request", "400 Bad Request\n"),
        ("GET /healthz", long.as_str(), "431 Request Header Fields Too Large", "431 Request "),
        ("GET /healthz", many.as_str(), "431 Request Header Fields Too Large", "431 Request "),
    ] {
        let head = start.replacen("GET", "HEAD", 1);
        // A request head that is too large is not known to be a HEAD.
        let starts = if status.starts_with("431") { vec![start] } else { vec![start, &head] };
        for (start, version) in starts.iter().flat_map(|start| [(start, "1.1"), (start, "1.0")]) {
            // To the second, as the field is.
            let sent = SystemTime::now() - Duration::from_secs(1);
            let response = exchange(&public, format!("{start} HTTP/{version}\r\n{fields}\r\n"));
            let context = format!("{start} {fields:.30}: {response:?}");
            assert_eq!(response.status_line(), status, "{context}");
            let (names, values): (Vec<_>, Vec<_>) = response.fields().into_iter().unzip();
            let allow = if status.starts_with("405") { &["Allow"][..] } else { &[] };
            let rest = ["Content-Type", "Content-Length", "Connection"];
            assert_eq!(names, [&["Date"], allow, &rest].concat(), "{context}");
            let date = httpdate::parse_http_date(values[0]).expect("a date");
            assert!((sent..=SystemTime::now()).contains(&date), "{context}");
            assert!(allow.is_empty() || values[1] == "GET, HEAD", "{context}");
            let [kind, length, connection] = values[values.len() - 3..] else { unreachable!() };
            let metrics = start.ends_with("/metrics") && status == "200 OK";
            assert_eq!(kind, if metrics { "text/plain; version=0.0.4" } else { PLAIN });
            assert_eq!(connection, "close");
            let length: usize = length.parse().expect("a number");
            if start.starts_with("HEAD") {
                assert!(response.body.is_empty() && length >= body.len(), "{context}");
            } else {
                assert!(
                    response.body.starts_with(body) && response.body.len() == length,
                    "{context}"
                );
            }
        }
    }
}

#[test]
fn a_malformed_request_is_rejected_with_its_reason() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let get = |fields: String| format!("GET /healthz HTTP/1.1\r\n{fields}\r\n").into_bytes();
    // A request head of this many bytes, and of this many fields.
    let bytes = |n: usize| get(format!("a: {}\r\n", "b".repeat(n - get("a: \r\n".into()).len())));
    let fields = |n: usize| get("a: b\r\n".repeat(n));
    let text = |text: &str| text.as_bytes().to_vec();
    for (head, code) in [
        (bytes(4096), 200),
        (bytes(4097), 431),
        (bytes(100_000), 431),
        (vec![b'a'; 5000], 431),
        (b"\r\n".repeat(3000), 431),
        (fields(64), 200),
        (fields(65), 431),
        (fields(2000), 431),
        (get("Content-Length: 0\r\n".into()), 200),
        (get("Content-Length: 5\r\n\r\nhello".into()), 413),
        (get("Content-Length: 99999999999999\r\n".into()), 413),
        (get("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n".into()), 413),
        (get("Expect: 100-continue\r\nContent-Length: 9\r\n".into()), 413),
        (get("Content-Length: \r\n".into()), 400),
        (get("Content-Length: -1\r\n".into()), 400),
        (get("Content-Length: +0\r\n".into()), 400),
        (get("Content-Length: 0x0\r\n".into()), 400),
        (get("Content-Length: 0, 0\r\n".into()), 400),
        (get("Bad Name: a\r\n".into()), 400),
        (get("No colon\r\n".into()), 400),
        (get("a: \0\r\n".into()), 400),
        (text("GET /healthz\r\n\r\n"), 400),
        (text("GET /healthz HTTP/3.0\r\n\r\n"), 400),
        (text("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 400),
        (text("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}"), 400),
        (text("SSH-2.0-OpenSSH_9.9\r\n"), 400),
        (text("PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"), 400),
        (text("\0\0\0\0"), 400),
    ] {
        let client = sidecar.public().send(&head);
        // A request that is too long to be discarded may end in a reset, behind the response.
        let response = Response::of(&client.read_to_end().0);
        assert_eq!(response.status, code, "{:.60}", String::from_utf8_lossy(&head));
    }
    assert_drains(&sidecar, &admin);
}

#[test]
fn bytes_after_a_request_get_no_response_and_cost_none() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let public = sidecar.public();
    let kept = |version: &str| {
        format!("GET /healthz HTTP/{version}\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
    };
    let missing = "GET /none HTTP/1.1\r\nHost: x\r\n\r\n";
    for (bytes, code) in [
        (HEALTHZ.repeat(2), 200),
        (kept("1.1"), 200),
        (kept("1.0"), 200),
        (kept("1.1").repeat(200), 200),
        (missing.repeat(2), 404),
        (HEALTHZ.to_owned() + missing, 200),
        (HEALTHZ.to_owned() + "hello", 200),
        ("GET /metrics HTTP/1.1\r\n\r\n".repeat(2), 200),
        (SHUTDOWN.repeat(2), 400),
        (SHUTDOWN.to_owned() + "x", 400),
    ] {
        // It ends in order, though the sidecar has not read all of it.
        let response = exchange(&public, &bytes);
        assert_eq!(response.status, code, "{bytes:?}: {response:?}");
        assert!(!response.body.contains("HTTP/1.1 "), "{bytes:?}: {response:?}");
    }
    // These send as long as they can, and read only then.
    for (head, code, body) in [
        (HEALTHZ, 200, "OK"),
        (missing, 404, "404 Not Found\n"),
        ("POST /healthz HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", 405, "405 Method Not"),
        (SHUTDOWN, 400, "nothing may follow this request\n"),
        ("nonsense\r\n\r\n", 400, "400 Bad Request\n"),
    ] {
        let client = public.send("");
        client.try_send([head.as_bytes(), &[b'x'; 1_000_000]].concat());
        let response = Response::of(&client.read_to_end().0);
        assert_eq!(response.status, code, "{head:?}");
        assert!(response.body.starts_with(body), "{head:?}: {response:?}");
    }
    assert_drains(&sidecar, &admin);
}

#[test]
fn a_request_head_may_come_in_pieces() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    assert_exits(&mut sidecar.hook(&[]), 0, "drained");
    let head = "HEAD /healthz HTTP/1.0\r\nUser-Agent: kube-probe/1.34\r\n\r\n";
    for (head, code) in [
        (HEALTHZ, 200),
        (head, 200),
        (SHUTDOWN, 200),
        ("\r\n\r\nGET /metrics HTTP/1.1\n\n", 200),
        ("GET /none HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("DELETE /healthz HTTP/1.1\r\n\r\n", 405),
    ] {
        for size in [1, 7] {
            let client = sidecar.public().send("");
            head.as_bytes().chunks(size).for_each(|piece| client.send(piece));
            assert_eq!(client.only_response().status, code, "{head:?} by {size}");
        }
    }
}

#[test]
fn an_incomplete_request_head_is_waited_for_five_seconds() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let public = sidecar.public();
    let talk = |start: &str, drips: bool| {
        let started = Instant::now();
        let client = public.send(start);
        let deadline = started + PATIENCE;
        while drips && client.is_waiting() && Instant::now() < deadline {
            // A client that sends byte by byte has no more time for all of them.
            client.send("x");
            let _soon =
                try_wait_for(Duration::from_millis(200), || (!client.is_waiting()).then_some(()));
        }
        let response = client.read_to_end().0;
        (response, started.elapsed())
    };
    thread::scope(|scope| {
        let cases = [
            ("", false),
            ("G", false),
            ("GET /healthz HTTP/1.1\r\nHost: x\r\n", false),
            ("GET /shutdown HTTP/1.1\r\na: ", false),
            ("GET /", true),
            ("GET /healthz HTTP/1.1\r\na: ", true),
        ];
        let talks = cases.map(|(start, drips)| (start, scope.spawn(move || talk(start, drips))));
        for (start, talk) in talks {
            let (response, took) = talk.join().expect("a talk");
            assert_took(start, took, 5.0..10.0);
            if start.is_empty() {
                assert_eq!(response, "", "a client that sent nothing gets no response");
            } else {
                assert_eq!(
                    Response::of(&response).status_line(),
                    "408 Request Timeout",
                    "{start:?}"
                );
            }
        }
    });
    assert_drains(&sidecar, &admin);
}

#[test]
fn a_half_closed_client_is_answered_unless_it_waits_for_a_drain() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    for (path, code) in [("/healthz", 200), ("/metrics", 200), ("/none", 404)] {
        for _ in 0..20 {
            let client = sidecar.public().send(format!("GET {path} HTTP/1.1\r\n\r\n"));
            client.half_close();
            assert_eq!(client.only_response().status, code, "{path}");
        }
    }
    for unfinished in ["", "GET /healthz HTTP/1.1\r\n"] {
        let client = sidecar.public().send(unfinished);
        client.half_close();
        assert_eq!(client.read_to_end().0, "", "{unfinished:?}");
    }
    let stays = sidecar.public().start_get("/shutdown");
    let leaves = sidecar.public().start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 2);
    leaves.half_close();
    wait_envoy_hooks(&sidecar, 1);
    assert_eq!(leaves.read_to_end().0, "");
    assert!(stays.is_waiting());
}

#[test]
fn the_metrics_count_responses() {
    let admin = FakeAdmin::unix();
    let sidecar = start(&admin);
    let public = sidecar.public();
    let counted = || {
        let metrics = sidecar.metrics();
        let lines = metrics.lines().filter_map(|line| {
            let line = line.strip_prefix("envoy_shutdown_requests_total{route=")?;
            Some(line.replace("\"", "").replace(",code=", " ").replace('}', ""))
        });
        lines.collect::<Vec<_>>()
    };
    assert_eq!(counted(), ["healthz 200 0", "shutdown 200 0", "metrics 200 0"]);
    let waiter = public.start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 1);
    for (start, times) in [
        ("GET /healthz", 3),
        ("HEAD /healthz", 1),
        ("POST /healthz", 2),
        ("GET /metrics", 2),
        ("PUT /shutdown", 1),
        ("POST /drain", 4),
        ("GET /a b", 1),
    ] {
        (0..times).for_each(|_| drop(exchange(&public, format!("{start} HTTP/1.1\r\n\r\n"))));
    }
    exchange(&public, "GET /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\n");
    exchange(&public, [b'a'; 4096]);
    let waiting = exchange(&public, "GET /metrics HTTP/1.1\r\n\r\n").body;
    assert_eq!(metric::<u64>(&waiting, "envoy_hooks"), 1);
    assert_eq!(metric::<u64>(&waiting, "connections_rejected_total"), 0);
    let mut hook = start_drain(&sidecar, &admin);
    finish_drain(&admin, &mut hook);
    waiter.only_response();
    let expected = [
        "healthz 200 4",
        "healthz 405 2",
        "shutdown 200 1",
        "shutdown 405 1",
        "metrics 200 3",
        "metrics 413 1",
        "none 400 1",
        "none 404 4",
        "none 431 1",
    ];
    assert_eq!(counted(), expected);
    assert_eq!(sidecar.metric("envoy_hooks"), 0);
}

#[test]
fn a_request_that_waits_alone_is_answered_with_503_after_the_start_timeout() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::builder().beside(&admin).arg("--start-timeout=1s").start();
    for start in ["GET /shutdown", "GET /shutdown/ready", "HEAD /shutdown"] {
        let started = Instant::now();
        let response = exchange(&sidecar.public(), format!("{start} HTTP/1.1\r\n\r\n"));
        let took = started.elapsed();
        assert_eq!(response.status_line(), "503 Service Unavailable", "{start}");
        assert_took(start, took, 1.0..5.0);
        let body = if start.starts_with("HEAD") { "" } else { NO_DRAIN_BODY };
        assert_eq!(response.body, body);
    }
    sidecar.wait_log(START_TIMEOUT_PASSED);
    wait_envoy_hooks(&sidecar, 0);
    assert_drains(&sidecar, &admin);
}

#[test]
fn a_request_that_waits_when_a_drain_starts_is_not_answered_before_its_end() {
    let admin = FakeAdmin::unix();
    let sidecar = Sidecar::builder().beside(&admin).arg("--start-timeout=2s").start();
    admin.set_open(1);
    let before = sidecar.public().start_get("/shutdown");
    wait_envoy_hooks(&sidecar, 1);
    // Quicker than a hook.
    assert_eq!(sidecar.control().post("/drain"), (200, "started 1\n"));
    let during = sidecar.public().start_get("/shutdown");
    wait_for("the start timeout and more", || {
        let seconds = metric::<f32>(&sidecar.metrics(), "drain_duration_seconds");
        (seconds > 3.0).then_some(())
    });
    wait_envoy_hooks(&sidecar, 2);
    admin.set_open(0);
    for waiter in [before, during] {
        assert_eq!(waiter.only_response(), OK);
    }
    sidecar.assert_not_logged(START_TIMEOUT_PASSED);
}
