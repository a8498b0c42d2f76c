//! The commands `restore` and `release`, for an operator at a terminal.

use std::thread;
use std::time::{Duration, Instant};

use super::sidecar::{SidecarClient, SidecarError};
use super::{ExitStatus, control_paths, print_stderr};
use crate::cli::Args;
use crate::control_socket::{is_of_pod, is_of_user};
use crate::os::output::show;

/// One call to Envoy takes 10 s at most, and another may be under way.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(25);
const RESTORE_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Restores Envoy to service.
pub fn restore(args: &Args) -> ExitStatus {
    run(args, &|sidecar| {
        let number = sidecar.restore()?;
        let deadline = Instant::now() + RESTORE_TIMEOUT;
        loop {
            match sidecar.restored(number)? {
                Some(Ok(())) => return Ok("Envoy is back in service".to_owned()),
                Some(Err(reason)) => {
                    let text = format!("Envoy was not restored to service: {reason}");
                    return Err(SidecarError::Final(ExitStatus::GaveUp, text));
                }
                None if Instant::now() >= deadline => {
                    let text = "nothing has come of the request yet; see the sidecar's log";
                    return Err(SidecarError::Final(ExitStatus::GaveUp, text.to_owned()));
                }
                None => thread::sleep(RESTORE_POLL_INTERVAL),
            }
        }
    })
}

/// Ends the drain in progress as its timeout would.
pub fn release(args: &Args) -> ExitStatus {
    run(args, &|sidecar| {
        let drain = sidecar.release()?;
        let (_, explanation) = sidecar.wait(drain)?;
        Ok(format!("drain {drain}: {explanation}"))
    })
}

/// Runs a command at the sidecar that the hook would find, and shows what came of it.
fn run(
    args: &Args,
    command: &dyn Fn(&SidecarClient) -> Result<String, SidecarError>,
) -> ExitStatus {
    let check = if args.control_socket.is_some() { is_of_user } else { is_of_pod };
    let found = SidecarClient::find(&control_paths(args), check, Duration::ZERO);
    match found.map_err(SidecarError::unreachable).and_then(|sidecar| command(&sidecar)) {
        Ok(text) => {
            // The reader may have gone.
            show(&(text + "\n"), false);
            ExitStatus::Done
        }
        Err(SidecarError::Final(status, text)) => {
            print_stderr(&format!("{text}\n"));
            status
        }
        Err(SidecarError::Lost(reason)) => {
            print_stderr(&format!("the sidecar was lost: {reason}\n"));
            ExitStatus::NoSidecar
        }
    }
}
