//! The program that the demo shows. Cargo does not build it for an example, so the example does.

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

/// Link-time optimisation takes long on a slow machine.
const BUILD_TIMEOUT: Duration = Duration::from_secs(600);

/// Builds the program at the path from which it is run. Without cargo, it must be there already.
pub fn build(interrupt: &Interrupt) -> Result<(), String> {
    let (program, cargo) = (program(), env::var_os("CARGO"));
    let Some(cargo) = cargo else {
        let missing =
            format!("{} is missing; run the demo with cargo, which builds it", program.display());
        return if program.is_file() { Ok(()) } else { Err(missing) };
    };
    // A compiler that is killed leaves files here, which are removed with the directory.
    let temp = temp_dir("build");
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "--bin", env!("CARGO_PKG_NAME")]);
    command.args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
    into(&mut command, program.parent().unwrap_or(&program));
    let failed = |why| format!("the program cannot be built: cargo: {why}");
    let io_failed = |error: std::io::Error| failed(error.to_string());
    command.env("TMPDIR", temp.path()).process_group(0);
    let mut child = command.spawn().map_err(io_failed)?;
    match interrupt.until("cargo", BUILD_TIMEOUT, || child.try_wait().transpose()) {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(failed(status.to_string())),
        Ok(Err(error)) => Err(io_failed(error)),
        Err(why) => {
            // Its compilers are in its process group.
            if let Ok(group) = child.id().try_into() {
                let _empty = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            let _ = child.wait();
            Err(why)
        }
    }
}

/// Makes cargo build into this directory: `TARGET_DIR/PROFILE` or `TARGET_DIR/TRIPLE/PROFILE`.
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
