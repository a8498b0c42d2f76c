//! A disk that is full, read-only or not there: a drain ends all the same, and the log says what
//! could not be done.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

use std::path::PathBuf;

use crate::support::admin::FakeAdmin;
use crate::support::rows::{each, named};
use crate::support::scene::{
    Waiter, arguments, assert_ends, assert_told, may_unshare, wait_status,
};
use crate::support::sidecar::Sidecar;
use crate::support::{PATIENCE, shared, temp_dir};

#[test]
fn a_drain_ends_though_its_ready_file_cannot_be_created() {
    let _turn = shared();
    if !may_unshare("--mount") {
        return;
    }
    let (tmpfs, is_there) = ("mount -t tmpfs tmpfs", true);
    // What is mounted at `.`, what the log says, and whether a ready file is there at the end.
    let rows = [
        (
            "no room for a file",
            (format!("{tmpfs} -o nr_inodes=1 ."), "create", "No space left", !is_there),
        ),
        ("no room but for an empty file", {
            (format!("{tmpfs} -o size=4k .; head -c 4096 /dev/zero > ./full"), "", "", is_there)
        }),
        ("read-only", (format!("{tmpfs} -o ro ."), "create", "Read-only file system", !is_there)),
        ("read-only, and one is there", {
            let script = format!("{tmpfs} .; touch ./ready; mount -o remount,ro .");
            (script, "remove", "Read-only file system", is_there)
        }),
        ("a directory", {
            (format!("{tmpfs} .; mkdir ./ready"), "create", "Is a directory", is_there)
        }),
        ("no such directory", ("rmdir .".to_owned(), "create", "No such file", !is_there)),
    ];
    each(named(rows), |name, (script, verb, says, is_there)| {
        let (admin, dir) = (FakeAdmin::unix(), temp_dir("disk"));
        let place = dir.path().join("disk");
        std::fs::create_dir(&place).expect("make a directory");
        let script = script.replace(" .", &format!(" {}", place.display()));
        let script = format!("set -e; {script}; exec \"$@\"");
        let ready = place.join("ready");
        let ready_file = format!("--ready-file={}", ready.display());
        let args = arguments(&admin.address(), &["--check-interval=50ms", &ready_file]);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let sidecar = Sidecar::launch()
            .args(&args)
            .under(&["unshare", "--mount", "sh", "-c", &script, "sh"])
            .start();
        admin.set_open(1);
        let (waiter, mut hook) = (Waiter::new(&sidecar), sidecar.hook(&[]));
        wait_status(&sidecar, &["\"phase\":\"draining\"", "\"open_connections\":1,"]);
        assert!(hook.running() && !waiter.is_answered(), "{name}: {:?}", hook.try_wait());
        admin.set_open(0);
        assert_ends(&mut hook, 0, "drained: no connection is open");
        assert_eq!(waiter.answer(), (200, "OK".to_owned()), "{name}");
        let could_not = format!("level=error msg=\"could not {verb} the ready file\" path=");
        if says.is_empty() {
            assert!(!sidecar.log().join("\n").contains("level=error"), "{:#?}", sidecar.log());
        } else {
            assert_told(&sidecar, &[&could_not]);
            let log = sidecar.log();
            let line = log.iter().find(|line| line.contains(&could_not)).expect("the line");
            assert!(line.contains(says) && line.contains(&*ready.to_string_lossy()), "{line}");
        }
        assert_told(&sidecar, &["outcome=drained"]);
        let inside = PathBuf::from(format!("/proc/{}/root{}", sidecar.pid(), ready.display()));
        assert_eq!(inside.exists(), is_there, "{name}");
    });
}

#[test]
fn a_drain_ends_though_its_log_cannot_be_written() {
    let _turn = shared();
    let admin = FakeAdmin::unix();
    let args = arguments(&admin.address(), &["--check-interval=50ms"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut sidecar =
        Sidecar::launch().args(&args).under(&["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"]).start();
    admin.set_open(1);
    let mut hook = sidecar.hook(&[]);
    wait_status(&sidecar, &["\"phase\":\"draining\"", "\"open_connections\":1,"]);
    assert!(hook.running(), "{:?}", hook.try_wait());
    admin.set_open(0);
    assert_ends(&mut hook, 0, "drained: no connection is open");
    sidecar.signal(nix::sys::signal::Signal::SIGTERM);
    let exit = sidecar.wait_exit(PATIENCE);
    assert_eq!((exit.code, exit.output.as_str()), (Some(0), ""));
}
