//! The preStop hook: starts a drain, or joins the one in progress, and waits for its end.

use std::mem;
use std::path::absolute;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::stdio::{stderr, stdin};
use rustix::termios::isatty;

use super::sidecar::{DRAIN_RESPONSE_TIMEOUT, SidecarClient, SidecarError};
use super::{ExitStatus, PROGRESS_INTERVAL, control_paths, print_stderr, print_usage_error};
use crate::cli::Args;
use crate::cli::address::AdminAddress;
use crate::cli::drain_request::{DrainRequest, HookRequest, MAX_QUERY, drop_excess, join_errors};
use crate::cli::options::{DrainOption, Flavor, Overrides};
use crate::control_socket::{is_of_pod, is_of_user, resolve_admin};
use crate::frontend::RESPONSE_TIMEOUT;
use crate::frontend::request::MAX_CONTROL_HEAD;
use crate::observe::json::seen;
use crate::observe::status::whole;
use crate::os::clock;
use crate::os::supervisor::spawn;

/// A sidecar that is being restarted listens within milliseconds; this leaves room for a slow
/// machine.
const SIDECAR_START_TIMEOUT: Duration = Duration::from_secs(5);

/// A hook that lost its sidecar starts a drain in the next one or joins it, but not for ever.
const MAX_LOSSES: u32 = 10;
const LOSS_BACKOFF: Duration = Duration::from_millis(200);

/// A sidecar that is frozen must not drain when it thaws: the request expires before the hook, and
/// the frontend, stop waiting for its response.
const DRAIN_EXPIRY: Duration = Duration::from_secs(4);
const _: () = assert!(
    DRAIN_EXPIRY.as_millis() < RESPONSE_TIMEOUT.as_millis()
        && RESPONSE_TIMEOUT.as_millis() < DRAIN_RESPONSE_TIMEOUT.as_millis()
);

// The rest of the request head has less than 200 bytes.
const _: () = assert!(MAX_QUERY + 512 <= MAX_CONTROL_HEAD);

/// Starts a drain or joins one, waits for its end, and shows on stderr how it goes.
pub fn shutdown(mut args: Args) -> ExitStatus {
    for name in &args.ignored {
        print_stderr(&format!("--{name} is ignored, as Contour does; use --admin-address\n"));
    }
    let paths = control_paths(&args);
    args.errors.extend(resolve_paths(&mut args.overrides));
    args.errors.iter().for_each(|error| print_usage_error(error));
    if !args.errors.is_empty() {
        if is_at_terminal() {
            return ExitStatus::Usage;
        }
        print_stderr("the drain starts all the same, without what is wrong\n");
    }
    let drain = DrainRequest { overrides: args.overrides, expires: None };
    let mut request = HookRequest { drain, error: join_errors(&args.errors) };
    let check = if args.control_socket.is_some() { is_of_user } else { is_of_pod };
    let progress = Arc::new(Mutex::new(Progress::start()));
    let shared = Arc::clone(&progress);
    // The drain is waited for with or without this thread.
    let _ = spawn("progress", Box::new(move || show_progress(&shared)));
    let mut losses = 0;
    loop {
        let find = SidecarClient::find(&paths, check, SIDECAR_START_TIMEOUT);
        let ended = find.map_err(SidecarError::unreachable).and_then(|sidecar| {
            request.drain.expires = Some(clock::wall_now() + DRAIN_EXPIRY);
            let (drain, joined) = sidecar.start_drain(&request)?;
            let mut progress = lock(&progress);
            if let Some(line) = joined {
                progress.print(&line);
            }
            progress.sidecar = Some(sidecar.clone());
            drop(progress);
            sidecar.wait(drain)
        });
        let mut progress = lock(&progress);
        progress.sidecar = None;
        match ended {
            Ok((status, explanation)) | Err(SidecarError::Final(status, explanation)) => {
                progress.end(&explanation);
                return match status {
                    ExitStatus::NoSidecar => status,
                    _ if !args.errors.is_empty() => ExitStatus::Usage,
                    // Envoy Gateway's own command has no such end, and each would be an event of the pod.
                    ExitStatus::GaveUp if args.flavor == Flavor::EnvoyGateway => ExitStatus::Done,
                    _ => status,
                };
            }
            Err(SidecarError::Lost(reason)) if losses < MAX_LOSSES => {
                losses += 1;
                progress.show(&format!("the sidecar was lost ({reason}); searching for it again"));
                thread::sleep(LOSS_BACKOFF);
            }
            Err(SidecarError::Lost(reason)) => {
                progress.end(&format!("the sidecar was lost too often: {reason}"));
                return ExitStatus::NoSidecar;
            }
        }
    }
}

/// No one reads the hook's output in a pod that is being deleted, and a drain that is not started
/// cuts every connection. A person at a terminal can correct the command first.
fn is_at_terminal() -> bool {
    isatty(stdin()) || isatty(stderr())
}

/// Makes the paths those of any process of the pod, since the sidecar's working directory may be
/// another. What cannot be is dropped, and a sentence returned.
fn resolve_paths(overrides: &mut Overrides) -> Vec<String> {
    let mut errors = Vec::new();
    for (option, text) in overrides.pairs().to_vec() {
        let resolved = match option {
            DrainOption::AdminAddress => {
                let address = AdminAddress::parse(&text);
                address
                    .and_then(|address| resolve_admin(&address))
                    .map(|address| address.to_string())
            }
            DrainOption::ReadyFile | DrainOption::InjectedResource => absolute(&text)
                .ok()
                .and_then(|path| path.into_os_string().into_string().ok())
                .ok_or("relative to a working directory that is gone or not UTF-8"),
            _ => continue,
        };
        let set = resolved.map_err(|reason| format!("{text:?} is {reason}"));
        if let Err(reason) = set.and_then(|text| overrides.set(option, &text)) {
            overrides.retain(&mut |(other, _)| *other != option);
            errors.push(format!("--{}: {reason}", option.name()));
        }
    }
    // They may have become longer.
    errors.extend(drop_excess(overrides));
    errors
}

/// Shows at intervals how the drain goes that is waited for.
fn show_progress(progress: &Mutex<Progress>) -> ! {
    loop {
        thread::sleep(PROGRESS_INTERVAL);
        let Some(sidecar) = lock(progress).sidecar.clone() else { continue };
        let line = sidecar.status_line();
        let mut progress = lock(progress);
        // Nothing is shown after the end.
        if progress.sidecar.is_some() {
            progress.show(&line);
        }
    }
}

/// A panic leaves a `Progress` that can be used.
fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the drain goes: one line in place on a terminal, else a line for each change.
struct Progress {
    started: Instant,
    shown: String,
    in_place: bool,
    /// The sidecar whose drain is waited for.
    sidecar: Option<SidecarClient>,
}

impl Progress {
    /// Lines that are overwritten must not wrap.
    const COLUMNS: usize = 79;

    fn start() -> Self {
        let in_place = isatty(stderr());
        Self { started: Instant::now(), shown: String::new(), in_place, sidecar: None }
    }

    fn show(&mut self, text: &str) {
        let text = seen(text);
        if self.in_place {
            let line = format!("{} {text}", whole(self.started.elapsed()));
            let line: String = line.chars().take(Self::COLUMNS).collect();
            print_stderr(&format!("\r\x1b[K{line}"));
        } else if text != self.shown {
            print_stderr(&format!("{} {text}\n", whole(self.started.elapsed())));
        }
        self.shown = text;
    }

    /// Shows a line that stays.
    fn print(&mut self, text: &str) {
        let shown = mem::take(&mut self.shown);
        let start = if self.in_place && !shown.is_empty() { "\r\x1b[K" } else { "" };
        print_stderr(&format!("{start}{}\n", seen(text)));
    }

    fn end(&mut self, text: &str) {
        let took = whole(self.started.elapsed());
        self.print(&format!("{text} (after {took})"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of these, and what is said about the rest.
    fn resolved(given: &[(DrainOption, &str)]) -> (Vec<(DrainOption, String)>, Vec<String>) {
        let mut overrides = Overrides::default();
        for (option, text) in given {
            overrides.set(*option, text).unwrap();
        }
        let errors = resolve_paths(&mut overrides);
        (overrides.pairs().to_vec(), errors)
    }

    #[test]
    fn paths_become_absolute_and_one_that_cannot_is_dropped() {
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        let here = |name: &str| here.join(name).to_str().unwrap().to_owned();
        let (left, errors) = resolved(&[
            (DrainOption::ReadyFile, "ready"),
            (DrainOption::CheckDelay, "1s"),
            (DrainOption::AdminAddress, "unix:s"),
        ]);
        let expected = [
            (DrainOption::CheckDelay, "1s".to_owned()),
            (DrainOption::ReadyFile, here("ready")),
            (DrainOption::AdminAddress, here("s")),
        ];
        assert!(errors.is_empty() && left.iter().all(|pair| expected.contains(pair)), "{left:?}");
        assert_eq!(left.len(), 3);

        let too_long = format!("unix:{}", "s".repeat(107));
        let delay = (DrainOption::CheckDelay, "1s");
        let (left, errors) = resolved(&[(DrainOption::AdminAddress, &too_long), delay]);
        assert_eq!(left, [(DrainOption::CheckDelay, "1s".to_owned())]);
        let start = format!("--admin-address: {too_long:?} is a path longer than the 107 bytes");
        assert!(errors.len() == 1 && errors[0].starts_with(&start), "{errors:?}");
    }

    #[test]
    fn a_path_that_fits_only_as_it_was_given_is_dropped() {
        // Beside these there is room for a relative path alone.
        let long = "a".repeat(12_288 - "&exclude=".len() - "&ready-file=ready".len());
        let given = [(DrainOption::Exclude, long.as_str()), (DrainOption::ReadyFile, "ready")];
        let (left, errors) = resolved(&given);
        assert_eq!(left.len(), 1);
        assert!(errors.len() == 1 && errors[0].starts_with("--ready-file: beyond"), "{errors:?}");
    }
}
