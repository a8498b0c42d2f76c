//! The commands `shutdown`, `status`, `restore` and `release`: clients of the control socket.

mod remedies;
mod shutdown;
mod sidecar;
mod status;

use std::path::PathBuf;
use std::time::Duration;

use rustix::stdio::stderr;

pub use self::remedies::{release, restore};
pub use self::shutdown::shutdown;
pub use self::status::status;
use crate::cli::options::Options;
use crate::cli::{Args, PROGRAM};
use crate::control_socket;
use crate::os::output::Lines;

/// How a command ends; the value is its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// Drained, or Envoy is gone or left in service.
    Done = 0,
    /// Gave up with connections open; of the other commands, refused or failed.
    GaveUp = 1,
    /// Wrong usage. A hook without a terminal has drained all the same.
    Usage = 2,
    /// No sidecar could be reached, or only that of another Envoy.
    NoSidecar = 3,
}

/// Time between two requests for the state of the drain.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Where the sidecar listens that a command with these options means.
fn control_paths(args: &Args) -> Vec<PathBuf> {
    let options = Options::default().with(&args.overrides);
    control_socket::hook_paths(args.control_socket.as_deref(), Some(&options.admin_address))
}

/// Says on stderr what is wrong with the command line.
pub fn print_usage_error(sentence: &str) {
    print_stderr(&format!("{PROGRAM}: {sentence}\n"));
}

/// Writes to stderr, if that takes it. The hook's work does not depend on whether it does.
pub fn print_stderr(text: &str) {
    static LINES: Lines = Lines::new();
    LINES.write(stderr(), text.as_bytes());
}
