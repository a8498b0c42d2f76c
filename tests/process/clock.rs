//! The machine's clock is set during a drain: each wait takes as long as it should.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::support::prelude::*;

/// A library that lets a program see another time of day, as <https://github.com/wolfcw/libfaketime>.
fn libfaketime() -> Option<PathBuf> {
    let folders = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from);
    let within = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let within: Vec<_> = within.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let all = folders.iter().chain(&within);
    all.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|path| path.is_file())
}

fn set_clock(file: &Path, days: i64) {
    // In one piece, for it is read at any time.
    let next = file.with_extension("next");
    fs::write(&next, format!("{:+}\n", days * 24 * 60 * 60)).expect("write");
    fs::rename(next, file).expect("rename");
}

/// The time of a record, which sorts as text.
#[track_caller]
fn time_of(sidecar: &Sidecar, expected: impl Into<Expected>) -> String {
    let expected = expected.into();
    sidecar.wait_log(expected.clone());
    let log = sidecar.log();
    let record = log.iter().find(|record| expected.matches(record)).expect("a record");
    record.get("time").expect("a time").to_owned()
}

#[test]
fn a_clock_that_is_set_shortens_and_lengthens_no_drain() {
    let loads = !cfg!(target_env = "musl") && !is_emulated();
    let Some(library) = libfaketime().filter(|_| loads) else {
        println!("SKIPPED: there is no libfaketime here, or no library is loaded into this build");
        return;
    };
    let cases = [
        ("--drain-delay=1500ms", DRAIN_DELAY, 0),
        ("--check-delay=1500ms", CHECK_DELAY, 0),
        ("--check-interval=1500ms", WAITING_FOR_CONNECTIONS, 0),
        ("--drain-timeout=1500ms", WAITING_FOR_CONNECTIONS, 1),
    ];
    let rows = cases.into_iter().flat_map(|case| {
        [1000, -3000].map(|days| (format!("{} and {days} days", case.0), (case, days)))
    });
    for_each_case(rows.collect(), |name, ((option, phase, code), days)| {
        let (admin, dir) = (FakeAdmin::unix(), temp_dir("clock"));
        let clock = dir.path().join("clock");
        set_clock(&clock, -1000);
        // Its hook has the same clock.
        let sidecar = Sidecar::builder()
            .beside(&admin)
            .arg(option)
            .env("LD_PRELOAD", library.to_str().expect("a path"))
            .env("FAKETIME_TIMESTAMP_FILE", clock.to_str().expect("a path"))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .start();
        let today = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let started = time_of(&sidecar, STARTED);
        assert!(started[..10] < today[..10], "{} changes nothing", library.display());
        admin.set_open(1);
        let mut hook = sidecar.hook(&[]);
        let open = (phase == WAITING_FOR_CONNECTIONS).then_some(1);
        wait_status(&sidecar, |status| {
            status.phase() == phase && (open.is_none() || status.open_connections() == open)
        });
        set_clock(&clock, days);
        if code == 0 {
            admin.set_open(0);
        }
        let exit = hook.wait();
        assert_eq!(exit.code, Some(code), "{name}: {exit:?}");
        assert_took(name, exit.took, 1.5..4.0);
        let ended = outcome(if code == 0 { "drained" } else { "timed_out" });
        let expected = [logged(DRAIN_STARTED), logged(OUT_OF_SERVICE), ended.clone()];
        assert_logged(&sidecar, &expected);
        let ended = time_of(&sidecar, ended);
        assert_eq!(days > 0, ended > today, "{name}: from {started} to {ended}");
        assert_eq!(days > 0, ended > started, "{name}: from {started} to {ended}");
    });
}
