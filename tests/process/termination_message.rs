//! The termination message: how the latest drain ended, where the kubelet has made a file for it.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::support::prelude::*;

/// A wrapper that gives the program a `/dev` of its own, after `script` has run in that folder.
fn with_dev(folder: &Path, script: &str) -> [String; 6] {
    let dev = folder.display();
    let script = format!(
        "set -e; mount -t tmpfs tmpfs {dev}; cd {dev}; touch null; mount --bind /dev/null null; {script}; \
         cd /; mount --rbind {dev} /dev; exec \"$@\""
    );
    ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned)
}

#[test]
fn the_latest_drains_outcome_is_written_and_is_there_when_the_sidecar_ends() {
    if !can_unshare("--mount") {
        return;
    }
    let (mut envoy, folder) = (envoy_with_tcp(), temp_dir("termination"));
    let (dev, file) = (folder.path().join("dev"), folder.path().join("log"));
    fs::create_dir(&dev).expect("make a directory");
    fs::write(&file, "x".repeat(1000)).expect("write a file");
    let mount = format!("touch termination-log; mount --bind {} termination-log", file.display());
    let mut sidecar = Sidecar::builder().beside(&envoy).under(with_dev(&dev, &mount)).start();
    let written = || fs::read_to_string(&file).expect("read a file");
    let client = connect(&envoy);
    assert_exits(&mut sidecar.hook(&["--drain-timeout=500ms"]), 1, "gave up at the drain timeout");
    let text = wait_value("the message", written, |text| text.starts_with("drain 1 ended at 2"));
    assert!(text.ends_with(": gave up at the drain timeout: 1 open at the last poll"), "{text}");

    // The process ends as soon as both hooks are answered.
    let _hooks = PreStopHooks::start_and_wait(&sidecar, &envoy);
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_log(stop_requested(Signal::SIGTERM, WAITING_FOR_CONNECTIONS));
    envoy.kill();
    assert_eq!(sidecar.wait().code, Some(0));
    let text = written();
    assert!(text.starts_with("drain 2 ended at 2"), "{text}");
    assert!(text.ends_with(&format!(": {ENVOY_IS_GONE_WITH_ONE_OPEN}")), "{text}");
    drop(client);
}

#[test]
fn what_is_no_file_of_the_kubelets_is_left_alone_and_holds_no_drain_up() {
    if !can_unshare("--mount") {
        return;
    }
    let rows = named([
        ("nothing", ":"),
        ("a FIFO", "mkfifo termination-log"),
        ("a link", "echo other >other; ln -s other termination-log"),
        ("a directory", "mkdir termination-log"),
        ("read-only", "echo other >termination-log; mount -o remount,ro ."),
    ]);
    for_each_case(rows, |name, script| {
        let (admin, folder) = (FakeAdmin::unix(), temp_dir("termination"));
        let wrapper = with_dev(folder.path(), script);
        let mut sidecar = Sidecar::builder().beside(&admin).under(wrapper).start();
        // It can be read through this when the process has ended.
        let dev = File::open(format!("/proc/{}/root/dev", sidecar.pid())).expect("a directory");
        let there = || {
            let entries = fs::read_dir(format!("/proc/self/fd/{}", dev.as_raw_fd()))
                .expect("read a directory");
            let mut entries: Vec<_> = entries
                .map(|entry| {
                    let entry = entry.expect("read a directory");
                    let file = entry.file_type().expect("its type").is_file();
                    let text = file.then(|| fs::read_to_string(entry.path()).expect("read a file"));
                    (entry.file_name(), text)
                })
                .collect();
            entries.sort();
            entries
        };
        let before = there();
        let mut hook = start_drain(&sidecar, &admin);
        let end = Instant::now();
        finish_drain(&admin, &mut hook);
        assert_took(name, end.elapsed(), 0.0..1.0);
        // When it has ended, it has tried to write the message.
        sidecar.finish();
        assert_eq!(there(), before, "{name}");
        sidecar.assert_not_logged(Expected::default().with("level", "error"));
    });
}
