//! The command `status`: shows the state of the drain.

use std::io::{self, IsTerminal as _, Write as _};
use std::thread;
use std::time::Duration;

use super::sidecar::SidecarClient;
use super::{ExitStatus, PROGRESS_INTERVAL, print_stderr};
use crate::cli::Args;
use crate::control_socket;
use crate::envoy::transport::any_peer;

/// Shows the state of the drain, with `--watch` again whenever it changes.
pub fn status(args: &Args) -> ExitStatus {
    let paths = control_socket::hook_paths(args.control_socket.as_deref(), None);
    let path = if args.json { "/status" } else { "/status?as=page" };
    let redraw = args.watch && !args.json && io::stdout().is_terminal();
    let mut shown = String::new();
    loop {
        // It changes nothing, so the sidecar may be one in another container, of another user.
        let page = SidecarClient::find(&paths, any_peer, Duration::ZERO)
            .and_then(|sidecar| sidecar.page(path));
        let page = match page {
            Ok(page) => page,
            Err(reason) => {
                print_stderr(&format!("no sidecar could be reached: {reason}\n"));
                return ExitStatus::NoSidecar;
            }
        };
        if page != shown {
            let home = if redraw { "\x1b[H\x1b[J" } else { "" };
            // It fails when the reader has gone: a pager that was left, say.
            if write!(io::stdout(), "{home}{page}").and_then(|()| io::stdout().flush()).is_err() {
                return ExitStatus::Done;
            }
            shown = page;
        }
        if !args.watch {
            return ExitStatus::Done;
        }
        thread::sleep(PROGRESS_INTERVAL);
    }
}
