//! A disk that is full, read-only or missing: a drain ends nevertheless, and what failed is logged.

use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::support::prelude::*;

#[test]
fn a_drain_ends_though_its_ready_file_cannot_be_created() {
    if !can_unshare("--mount") {
        return;
    }
    let (tmpfs, is_there) = ("mount -t tmpfs tmpfs", true);
    let not_created = |error| Some((READY_FILE_NOT_CREATED, error));
    let not_removed = |error| Some((READY_FILE_NOT_REMOVED, error));
    // What is mounted at `.`, what is logged, and whether a ready file is there at the end.
    let rows = [
        (
            "no room for a file",
            (format!("{tmpfs} -o nr_inodes=1 ."), not_created("No space left"), !is_there),
        ),
        ("no room but for an empty file", {
            (format!("{tmpfs} -o size=4k .; head -c 4096 /dev/zero > ./full"), None, is_there)
        }),
        (
            "read-only",
            (format!("{tmpfs} -o ro ."), not_created("Read-only file system"), !is_there),
        ),
        ("read-only, and one is there", {
            let script = format!("{tmpfs} .; touch ./ready; mount -o remount,ro .");
            (script, not_removed("Read-only file system"), is_there)
        }),
        ("a directory", {
            (format!("{tmpfs} .; mkdir ./ready"), not_created("Is a directory"), is_there)
        }),
        ("no such directory", ("rmdir .".to_owned(), not_created("No such file"), !is_there)),
    ];
    for_each_case(named(rows), |name, (script, failure, is_there)| {
        let (admin, dir) = (FakeAdmin::unix(), temp_dir("disk"));
        let disk = dir.path().join("disk");
        std::fs::create_dir(&disk).expect("make a directory");
        let script = script.replace(" .", &format!(" {}", disk.display()));
        let script = format!("set -e; {script}; exec \"$@\"");
        let ready = disk.join("ready");
        let ready_file = format!("--ready-file={}", ready.display());
        let sidecar = Sidecar::builder()
            .beside(&admin)
            .arg(ready_file)
            .under(["unshare", "--mount", "sh", "-c", &script, "sh"])
            .start();
        let waiter = sidecar.control().start_get("/shutdown");
        let mut hook = start_drain(&sidecar, &admin);
        assert!(waiter.is_waiting(), "{name}");
        finish_drain(&admin, &mut hook);
        assert_eq!(waiter.response(), OK, "{name}");
        if let Some((message, error)) = failure {
            let record = logged(message).with("level", "error").with("path", ready.display());
            sidecar.wait_log(record.containing("error", error));
        } else {
            sidecar.assert_not_logged(Expected::default().with("level", "error"));
        }
        sidecar.wait_log(outcome("drained"));
        let inside = PathBuf::from(format!("/proc/{}/root{}", sidecar.pid(), ready.display()));
        assert_eq!(inside.exists(), is_there, "{name}");
    });
}

#[test]
fn a_drain_ends_though_its_log_cannot_be_written() {
    let admin = FakeAdmin::unix();
    let mut sidecar = Sidecar::builder()
        .beside(&admin)
        .under(["sh", "-c", "exec \"$@\" >/dev/full", "sh"])
        .start();
    let mut hook = start_drain(&sidecar, &admin);
    finish_drain(&admin, &mut hook);
    sidecar.signal(Signal::SIGTERM);
    let exit = sidecar.wait();
    assert_eq!((exit.code, exit.output.as_str()), (Some(0), ""));
}

#[test]
fn what_is_put_in_the_ready_files_place_during_a_drain_is_replaced_by_it() {
    for_each_case(named([("a FIFO", true), ("a link", false)]), |name, is_fifo| {
        let (admin, dir) = (FakeAdmin::unix(), temp_dir("ready"));
        let (ready, other) = (dir.path().join("ready"), dir.path().join("other"));
        std::fs::write(&other, "another program's").expect("write a file");
        let ready_file = format!("--ready-file={}", ready.display());
        let sidecar = Sidecar::builder().beside(&admin).arg(ready_file).start();
        let mut hook = start_drain(&sidecar, &admin);
        if is_fifo {
            nix::unistd::mkfifo(&ready, nix::sys::stat::Mode::S_IRWXU).expect("make a FIFO");
        } else {
            std::os::unix::fs::symlink(&other, &ready).expect("make a link");
        }
        finish_drain(&admin, &mut hook);
        let there = std::fs::symlink_metadata(&ready).expect("the ready file");
        assert!(there.is_file(), "{name}: {there:?}");
        let kept = std::fs::read_to_string(&other).expect("read a file");
        assert_eq!(kept, "another program's", "{name}: the link was followed");
        sidecar.assert_not_logged(READY_FILE_NOT_CREATED);
    });
}
