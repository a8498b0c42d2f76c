//! The program that is shown. Cargo does not build it for an example, so the example does.

use std::env::{self, consts::ARCH};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::interrupt::Interrupt;
use crate::support::process::program;
use crate::support::temp_dir;

/// For a fat link on a slow machine.
const LONGEST: Duration = Duration::from_secs(600);

/// Builds the program where it is looked for. Without cargo, it must be there.
pub fn build(interrupt: &Interrupt) -> Result<(), String> {
    let (program, cargo) = (program(), env::var_os("CARGO"));
    let Some(cargo) = cargo else {
        let missing = format!("{} is missing, and no cargo runs the demo", program.display());
        return if program.is_file() { Ok(()) } else { Err(missing) };
    };
    // What a killed compiler leaves there goes with the directory.
    let temp = temp_dir("build");
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "--bin", env!("CARGO_PKG_NAME")]);
    command.args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
    into(&mut command, program.parent().unwrap_or(&program));
    let failed = |why| format!("the program cannot be built: cargo: {why}");
    let io_failed = |error: std::io::Error| failed(error.to_string());
    command.env("TMPDIR", temp.path()).process_group(0);
    let mut child = command.spawn().map_err(io_failed)?;
    match interrupt.until("cargo", LONGEST, || child.try_wait().transpose()) {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(failed(status.to_string())),
        Ok(Err(error)) => Err(io_failed(error)),
        Err(why) => {
            // Its compilers are in its group.
            if let Ok(group) = child.id().try_into() {
                let _empty = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            let _ = child.wait();
            Err(why)
        }
    }
}

/// Has cargo build into this directory: `TARGET_DIR/PROFILE` or `TARGET_DIR/TRIPLE/PROFILE`.
fn into(command: &mut Command, dir: &Path) {
    let name = |dir: &Path| dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let profile = name(dir);
    command.args(["--profile", if profile == "debug" { "dev" } else { &profile }]);
    let mut target_dir = dir.parent().unwrap_or(dir);
    let triple = name(target_dir);
    if triple.starts_with(&format!("{ARCH}-")) {
        command.args(["--target", &triple]);
        target_dir = target_dir.parent().unwrap_or(target_dir);
    }
    command.arg("--target-dir").arg(target_dir);
}
