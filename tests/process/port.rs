//! The public port: what it answers and to whom, that it withstands its clients, and that nothing
//! on it begins a drain.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

pub mod crowds;
mod outside;

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::support::admin::{FakeAdmin, Route};
use crate::support::caller::{Answer, Client};
use crate::support::scene::{arguments, assert_ends, before, metric, wait_status};
use crate::support::sidecar::{Hook, Sidecar};
use crate::support::{PATIENCE, assert_took, shared, try_wait_for, wait_for};

const PLAIN: &str = "text/plain; charset=utf-8";
pub const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
pub const SHUTDOWN: &str = "GET /shutdown HTTP/1.1\r\nHost: x\r\n\r\n";

/// Asks for this and nothing else.
#[track_caller]
fn ask(port: u16, request: impl AsRef<[u8]>) -> Answer {
    Client::new(port, request).answer()
}

#[track_caller]
pub fn assert_healthy(port: u16) {
    let answer = ask(port, HEALTHZ);
    assert_eq!((answer.status.as_str(), answer.body.as_str()), ("200 OK", "OK"));
}

/// However slow this machine is, nobody is let go before the test says so.
const PATIENT: &str = "--start-timeout=1h";

/// A sidecar that is asked at its port.
#[track_caller]
fn beside(admin: &FakeAdmin) -> Sidecar {
    before(&admin.address(), &[PATIENT])
}

/// The same behind a wrapper.
#[track_caller]
pub fn under(wrapper: &[&str], admin: &FakeAdmin) -> Sidecar {
    let args = arguments(&admin.address(), &[PATIENT]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    Sidecar::launch().under(wrapper).args(&args).start()
}

#[track_caller]
pub fn wait_waiters(sidecar: &Sidecar, n: usize) {
    wait_status(sidecar, &[&format!("\"waiters\":{n},")]);
}

/// Starts a drain that does not end by itself.
#[track_caller]
pub fn begin_drain(sidecar: &Sidecar, admin: &FakeAdmin) -> Hook {
    admin.set_open(1);
    let hook = sidecar.hook(&[]);
    wait_status(sidecar, &["\"phase\":\"draining\"", "\"open_connections\":1,"]);
    hook
}

#[track_caller]
pub fn end_drain(admin: &FakeAdmin, hook: &mut Hook) {
    assert!(hook.running(), "{:?}", hook.try_wait());
    admin.set_open(0);
    assert_ends(hook, 0, "drained");
}

/// Drains by the hook while one waits at the port, who is told.
#[track_caller]
fn assert_drains(sidecar: &Sidecar, admin: &FakeAdmin) {
    let waiter = Client::new(sidecar.port(), SHUTDOWN);
    wait_waiters(sidecar, 1);
    let mut hook = begin_drain(sidecar, admin);
    assert!(!waiter.is_answered());
    end_drain(admin, &mut hook);
    assert_eq!(waiter.answer().body, "OK");
    assert_eq!(admin.count(Route::Fail), 1);
}

pub const METHODS: &str = "GET HEAD POST PUT DELETE PATCH OPTIONS TRACE CONNECT PROPFIND get post \
                       Post DRAIN M-SEARCH !#$%&'*+.^_`|~ P\u{d6}ST POST\0 \u{ff27}ET";

/// What begins, tells or waits for something elsewhere: at the control socket, at Envoy's admin
/// interface, or in Contour before 1.7.
pub const PATHS: [&str; 6] =
    ["/drain", "/shutdown", "/status", "/healthcheck/fail", "/quitquitquit", "/drain_listeners"];

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
fn nothing_that_is_asked_at_the_port_begins_a_drain() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let port = sidecar.port();
    // A half that is closed lets a waiter go, and takes nothing from others.
    let told = |bytes: String| {
        let client = Client::new(port, &bytes);
        client.half_close();
        client.hear().0
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
        let answer = told(format!("{method} {target} HTTP/1.1\r\n{fields}\r\n\r\n"));
        let path = target.split('?').next().unwrap_or_default();
        if matches!(method, "GET" | "HEAD") && ["/shutdown", "/shutdown/ready"].contains(&path) {
            assert_eq!(answer, "", "{method} {target:?} did not wait");
        } else {
            let code = Answer::of(&answer).code().to_owned();
            let refused = ["400", "404", "405", "431"].contains(&code.as_str());
            assert!(refused, "{method} {target:?}: {answer}");
        }
    }
    for bytes in SMUGGLED {
        let answer = told(bytes.to_owned());
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{bytes:?}: {answer}");
    }
    let status = sidecar.status();
    let serving = ["\"phase\":\"serving\"", "\"drain\":0,", "\"waiters\":0,"];
    assert!(serving.iter().all(|part| status.contains(part)), "{status}");
    let posts = || admin.requests().iter().filter(|(_, line)| !line.starts_with("GET ")).count();
    assert_eq!(posts(), 0, "{:?}", admin.requests());
    assert!(!sidecar.log().join("\n").contains("drain requested"));
    assert_drains(&sidecar, &admin);
    assert_eq!(posts(), 1, "{:?}", admin.requests());
}

#[test]
fn an_answer_says_what_it_is_and_is_the_last() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let port = sidecar.port();
    // Then who waits is answered at once.
    assert_ends(&mut sidecar.hook(&[]), 0, "drained");
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
        // What is too large is not known to be a HEAD.
        let starts = if status.starts_with("431") { vec![start] } else { vec![start, &head] };
        for (start, version) in starts.iter().flat_map(|start| [(start, "1.1"), (start, "1.0")]) {
            // To the second, as the field is.
            let sent = SystemTime::now() - Duration::from_secs(1);
            let answer = ask(port, format!("{start} HTTP/{version}\r\n{fields}\r\n"));
            let context = format!("{start} {fields:.30}: {answer:?}");
            assert_eq!(answer.status, status, "{context}");
            let names: Vec<_> = answer.fields.iter().map(|(name, _)| name.as_str()).collect();
            let values: Vec<_> = answer.fields.iter().map(|(_, value)| value.as_str()).collect();
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
                assert!(answer.body.is_empty() && length >= body.len(), "{context}");
            } else {
                assert!(answer.body.starts_with(body) && answer.body.len() == length, "{context}");
            }
        }
    }
}

#[test]
fn what_is_no_request_is_refused_with_its_reason() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let get = |fields: String| format!("GET /healthz HTTP/1.1\r\n{fields}\r\n").into_bytes();
    // So many bytes and so many fields.
    let bytes = |n: usize| get(format!("a: {}\r\n", "b".repeat(n - get("a: \r\n".into()).len())));
    let fields = |n: usize| get("a: b\r\n".repeat(n));
    let text = |text: &str| text.as_bytes().to_vec();
    for (head, code) in [
        (bytes(4096), "200"),
        (bytes(4097), "431"),
        (bytes(100_000), "431"),
        (vec![b'a'; 5000], "431"),
        (b"\r\n".repeat(3000), "431"),
        (fields(64), "200"),
        (fields(65), "431"),
        (fields(2000), "431"),
        (get("Content-Length: 0\r\n".into()), "200"),
        (get("Content-Length: 5\r\n\r\nhello".into()), "413"),
        (get("Content-Length: 99999999999999\r\n".into()), "413"),
        (get("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n".into()), "413"),
        (get("Expect: 100-continue\r\nContent-Length: 9\r\n".into()), "413"),
        (get("Content-Length: \r\n".into()), "400"),
        (get("Content-Length: -1\r\n".into()), "400"),
        (get("Content-Length: +0\r\n".into()), "400"),
        (get("Content-Length: 0x0\r\n".into()), "400"),
        (get("Content-Length: 0, 0\r\n".into()), "400"),
        (get("Bad Name: a\r\n".into()), "400"),
        (get("No colon\r\n".into()), "400"),
        (get("a: \0\r\n".into()), "400"),
        (text("GET /healthz\r\n\r\n"), "400"),
        (text("GET /healthz HTTP/3.0\r\n\r\n"), "400"),
        (text("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "400"),
        (text("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}"), "400"),
        (text("SSH-2.0-OpenSSH_9.9\r\n"), "400"),
        (text("PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"), "400"),
        (text("\0\0\0\0"), "400"),
    ] {
        let client = Client::new(sidecar.port(), &head);
        // What is too long to be discarded may end in a reset, behind the answer.
        let answer = Answer::of(&client.hear().0);
        assert_eq!(answer.code(), code, "{:.60}", String::from_utf8_lossy(&head));
    }
    assert_drains(&sidecar, &admin);
}

#[test]
fn what_follows_a_request_gets_no_answer_and_costs_none() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let port = sidecar.port();
    let kept = |version: &str| {
        format!("GET /healthz HTTP/{version}\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
    };
    let missing = "GET /none HTTP/1.1\r\nHost: x\r\n\r\n";
    for (bytes, code) in [
        (HEALTHZ.repeat(2), "200"),
        (kept("1.1"), "200"),
        (kept("1.0"), "200"),
        (kept("1.1").repeat(200), "200"),
        (missing.repeat(2), "404"),
        (HEALTHZ.to_owned() + missing, "200"),
        (HEALTHZ.to_owned() + "hello", "200"),
        ("GET /metrics HTTP/1.1\r\n\r\n".repeat(2), "200"),
        (SHUTDOWN.repeat(2), "400"),
        (SHUTDOWN.to_owned() + "x", "400"),
    ] {
        // It ends orderly, though nobody has read all of it.
        let answer = ask(port, &bytes);
        assert_eq!(answer.code(), code, "{bytes:?}: {answer:?}");
        assert!(!answer.body.contains("HTTP/1.1 "), "{bytes:?}: {answer:?}");
    }
    // These write on as long as they can, and read only then.
    for (head, code, body) in [
        (HEALTHZ, "200", "OK"),
        (missing, "404", "404 Not Found\n"),
        ("POST /healthz HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", "405", "405 Method Not"),
        (SHUTDOWN, "400", "nothing may follow this request\n"),
        ("nonsense\r\n\r\n", "400", "400 Bad Request\n"),
    ] {
        let client = Client::new(port, "");
        client.say_what_is_taken(&[head.as_bytes(), &[b'x'; 1_000_000]].concat());
        let answer = Answer::of(&client.hear().0);
        assert_eq!(answer.code(), code, "{head:?}");
        assert!(answer.body.starts_with(body), "{head:?}: {answer:?}");
    }
    assert_drains(&sidecar, &admin);
}

#[test]
fn a_head_may_come_in_pieces() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    assert_ends(&mut sidecar.hook(&[]), 0, "drained");
    let head = "HEAD /healthz HTTP/1.0\r\nUser-Agent: kube-probe/1.34\r\n\r\n";
    for (head, code) in [
        (HEALTHZ, "200"),
        (head, "200"),
        (SHUTDOWN, "200"),
        ("\r\n\r\nGET /metrics HTTP/1.1\n\n", "200"),
        ("GET /none HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("DELETE /healthz HTTP/1.1\r\n\r\n", "405"),
    ] {
        for size in [1, 7] {
            let client = Client::new(sidecar.port(), "");
            head.as_bytes().chunks(size).for_each(|piece| client.say(piece));
            assert_eq!(client.answer().code(), code, "{head:?} by {size}");
        }
    }
}

#[test]
fn a_head_that_does_not_come_to_its_end_is_waited_for_five_seconds() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let port = sidecar.port();
    let talk = |start: &str, drips: bool| {
        let begun = Instant::now();
        let client = Client::new(port, start);
        let deadline = begun + PATIENCE;
        while drips && !client.is_answered() && Instant::now() < deadline {
            // Whoever says something again and again has no longer for all of it.
            client.say("x");
            let _soon =
                try_wait_for(Duration::from_millis(200), || client.is_answered().then_some(()));
        }
        let answer = client.hear().0;
        (answer, begun.elapsed())
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
            let (answer, took) = talk.join().expect("a talk");
            assert_took(start, took, 5.0..10.0);
            if start.is_empty() {
                assert_eq!(answer, "", "who has said nothing is told nothing");
            } else {
                assert_eq!(Answer::of(&answer).status, "408 Request Timeout", "{start:?}");
            }
        }
    });
    assert_drains(&sidecar, &admin);
}

#[test]
fn a_client_that_has_closed_its_half_is_answered_unless_it_waits_for_a_drain() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    for (path, code) in [("/healthz", "200"), ("/metrics", "200"), ("/none", "404")] {
        for _ in 0..20 {
            let client = Client::new(sidecar.port(), format!("GET {path} HTTP/1.1\r\n\r\n"));
            client.half_close();
            assert_eq!(client.answer().code(), code, "{path}");
        }
    }
    for unfinished in ["", "GET /healthz HTTP/1.1\r\n"] {
        let client = Client::new(sidecar.port(), unfinished);
        client.half_close();
        assert_eq!(client.hear().0, "", "{unfinished:?}");
    }
    let stays = Client::new(sidecar.port(), SHUTDOWN);
    let leaves = Client::new(sidecar.port(), SHUTDOWN);
    wait_waiters(&sidecar, 2);
    leaves.half_close();
    wait_waiters(&sidecar, 1);
    assert_eq!(leaves.hear().0, "");
    assert!(!stays.is_answered());
}

#[test]
fn the_metrics_count_what_was_answered() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = beside(&admin);
    let port = sidecar.port();
    let counted = || {
        let metrics = sidecar.request("GET", "/metrics").1;
        let lines = metrics.lines().filter_map(|line| {
            let line = line.strip_prefix("envoy_shutdown_requests_total{route=")?;
            Some(line.replace("\"", "").replace(",code=", " ").replace('}', ""))
        });
        lines.collect::<Vec<_>>()
    };
    assert_eq!(counted(), ["healthz 200 0", "shutdown 200 0", "metrics 200 0"]);
    let waiter = Client::new(port, SHUTDOWN);
    wait_waiters(&sidecar, 1);
    for (start, times) in [
        ("GET /healthz", 3),
        ("HEAD /healthz", 1),
        ("POST /healthz", 2),
        ("GET /metrics", 2),
        ("PUT /shutdown", 1),
        ("POST /drain", 4),
        ("GET /a b", 1),
    ] {
        (0..times).for_each(|_| drop(ask(port, format!("{start} HTTP/1.1\r\n\r\n"))));
    }
    ask(port, "GET /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\n");
    ask(port, [b'a'; 4096]);
    let waiting = ask(port, "GET /metrics HTTP/1.1\r\n\r\n").body;
    assert_eq!((metric(&waiting, "waiters"), metric(&waiting, "refused_total")), (1, 0));
    let mut hook = begin_drain(&sidecar, &admin);
    end_drain(&admin, &mut hook);
    waiter.answer();
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
    assert_eq!(metric(&sidecar.request("GET", "/metrics").1, "waiters"), 0);
}

const LET_GO: &str = "no drain has begun within the start timeout";

#[test]
fn a_lone_waiter_is_let_go_after_the_start_timeout() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &["--start-timeout=1s"]);
    for start in ["GET /shutdown", "GET /shutdown/ready", "HEAD /shutdown"] {
        let begun = Instant::now();
        let answer = ask(sidecar.port(), format!("{start} HTTP/1.1\r\n\r\n"));
        let took = begun.elapsed();
        assert_eq!(answer.status, "503 Service Unavailable", "{start}");
        assert_took(start, took, 1.0..5.0);
        let body = if start.starts_with("HEAD") { "" } else { LET_GO };
        assert_eq!(answer.body.trim_end(), body);
    }
    sidecar.wait_log(LET_GO, PATIENCE);
    wait_waiters(&sidecar, 0);
    assert_drains(&sidecar, &admin);
}

#[test]
fn who_waits_when_a_drain_begins_is_not_let_go_before_its_end() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let sidecar = before(&admin.address(), &["--start-timeout=2s"]);
    admin.set_open(1);
    let before = Client::new(sidecar.port(), SHUTDOWN);
    wait_waiters(&sidecar, 1);
    // Quicker than a hook.
    assert_eq!(sidecar.request("POST", "/drain"), (200, "started 1\n".to_owned()));
    let during = Client::new(sidecar.port(), SHUTDOWN);
    wait_for("the start timeout and more", PATIENCE, || {
        let metrics = sidecar.request("GET", "/metrics").1;
        let series = "envoy_shutdown_drain_duration_seconds ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(series));
        line.and_then(|value| value.parse().ok()).filter(|seconds: &f32| *seconds > 3.0)
    });
    wait_waiters(&sidecar, 2);
    admin.set_open(0);
    for waiter in [before, during] {
        assert_eq!(waiter.answer().status, "200 OK");
    }
    assert!(!sidecar.log().join("\n").contains(LET_GO));
}
