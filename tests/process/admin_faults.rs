//! Every fault of the admin interface, injected by the scripted one: none of them ends a drain as if
//! it had drained, and the drain continues when the fault is over.

mod gone;
mod odd_stats;
mod polls;
mod startup_check;
mod time_outs;

use crate::support::prelude::*;

/// Stats that show listeners and HTTP and no connection.
const NONE_CONNECTED: &str = "http.admin.downstream_cx_active: 1\n\
                      listener.admin.downstream_cx_active: 1\nserver.live: 0\n";

/// Runs each case at each kind of admin address.
fn each_over_both<T: Clone + Send>(
    rows: Vec<(String, T)>,
    run: impl Fn(&str, FakeAdmin, T) + Sync,
) {
    let both = |(name, row): (String, T)| {
        let unix = (format!("{name}, unix"), (FakeAdmin::unix as Start, row.clone()));
        [unix, (format!("{name}, tcp"), (FakeAdmin::tcp as Start, row))]
    };
    for_each_case(rows.into_iter().flat_map(both).collect(), |name, (start, row)| {
        run(name, start(), row)
    });
}

fn poll_errors(sidecar: &Sidecar, kind: &str) -> u64 {
    sidecar.metric(&format!("poll_errors_total{{kind=\"{kind}\"}}"))
}

#[track_caller]
fn last_error(sidecar: &Sidecar) -> String {
    let status = sidecar.status();
    status.last_error().unwrap_or_else(|| panic!("no error in {status:?}")).to_owned()
}

/// How often this error of the first drain was logged as a new one.
#[track_caller]
fn times_logged(sidecar: &Sidecar, error: &str) -> usize {
    let record = Expected::default().with("drain", 1).with("error", error);
    // The status shows it a moment before the log does.
    sidecar.wait_log(record.clone());
    sidecar.times_logged(record)
}

/// A drain that polls, and waits for one connection.
#[track_caller]
fn draining(admin: &FakeAdmin, args: &[&str]) -> (Sidecar, Hook) {
    let sidecar = Sidecar::builder().beside(admin).args(args).start();
    let hook = start_drain(&sidecar, admin);
    (sidecar, hook)
}

fn raw(head: &str, body: &str) -> Fault {
    Fault::Raw(format!("{head}\r\n\r\n{body}").into())
}

/// A response in chunks that is longer than any of Envoy's, of more than 16 MiB.
fn chunks_without_end(line: &str) -> Fault {
    let chunk = line.repeat((64 << 10) / line.len());
    let chunk = format!("{:x}\r\n{chunk}\r\n", chunk.len());
    raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", &chunk.repeat(260))
}

#[derive(Clone, Copy, Debug)]
enum Gone {
    Refusing,
    Vanished,
}

type Start = fn() -> FakeAdmin;

/// Each way of being gone, over each kind of address.
fn ways_to_go() -> [(&'static str, Start, Gone); 3] {
    [
        ("unix, refusing", FakeAdmin::unix, Gone::Refusing),
        ("unix, vanished", FakeAdmin::unix, Gone::Vanished),
        ("tcp, refusing", FakeAdmin::tcp, Gone::Refusing),
    ]
}

fn leave(admin: &mut FakeAdmin, how: Gone) -> &'static str {
    match how {
        Gone::Refusing => {
            admin.refuse();
            "connection refused"
        }
        Gone::Vanished => {
            admin.vanish();
            "there is no such socket"
        }
    }
}
