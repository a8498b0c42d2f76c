//! The file of `--ready-file`. A volume that hangs must not hold a drain up, so each operation has
//! a thread of its own, which is waited for no longer than a second.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::observe::log::Record;
use crate::observe::messages;

const TIMEOUT: Duration = Duration::from_secs(1);

/// Creates the file.
pub fn create(path: &Path) {
    let file = path.to_owned();
    bounded(messages::READY_FILE_NOT_CREATED, path, move || File::create(file).map(drop));
}

/// Removes a file that an earlier drain, or a previous run of the sidecar, created.
pub fn remove(path: &Path) {
    let file = path.to_owned();
    bounded(messages::READY_FILE_NOT_REMOVED, path, move || match fs::remove_file(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    });
}

fn bounded(
    failure: &'static str,
    path: &Path,
    operation: impl FnOnce() -> io::Result<()> + Send + 'static,
) {
    let (sender, receiver) = mpsc::channel();
    // After the time no thread receives any more.
    let operation = move || sender.send(operation()).unwrap_or_default();
    let result = match thread::Builder::new().name("ready-file".to_owned()).spawn(operation) {
        Ok(_) => receiver
            .recv_timeout(TIMEOUT)
            .unwrap_or_else(|_| Err(io::Error::other("the file system did not answer within 1s"))),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        Record::error(failure)
            .with("path", path.display().to_string())
            .with("error", error.to_string())
            .emit();
    }
}
