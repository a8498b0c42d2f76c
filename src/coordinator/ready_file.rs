//! The file of `--ready-file`. A volume that hangs must not hold a drain up, so each operation has
//! a thread of its own, which is waited for no longer than a second. A removal that was given up
//! may still be done later, when the volume works again.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;

use crate::observe::{log::Record, messages};
use crate::os::supervisor::bounded;

const TIMEOUT: Duration = Duration::from_secs(1);

/// Creates the file.
pub fn create(path: &Path) {
    attempt(messages::READY_FILE_NOT_CREATED, path, create_anew);
}

/// Removes a file that an earlier drain, or a previous run of the sidecar, created.
pub fn remove(path: &Path) {
    attempt(messages::READY_FILE_NOT_REMOVED, path, remove_if_there);
}

fn attempt(failure: &'static str, path: &Path, work: fn(&Path) -> io::Result<()>) {
    let file = path.to_owned();
    if let Err(error) = bounded("ready-file", TIMEOUT, Box::new(move || work(&file))) {
        let path = path.display().to_string();
        Record::error(failure).with("path", path).with("error", error.to_string()).emit();
    }
}

/// Follows no link and waits for no reader of a FIFO, which may have been put there meanwhile. A file
/// is left as it is: an earlier drain's, whose end this one has confirmed.
fn create_anew(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
        remove_if_there(path)?;
    }
    match File::create_new(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result.map(drop),
    }
}

/// Anything but a socket: by mistake the path may be that of Envoy's admin interface.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
        return Err(io::Error::other("there is a socket"));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_is_left_as_it_is_without_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready");
        fs::write(&path, "an earlier drain's").unwrap();
        let created = create_anew(&path);
        assert!(created.is_ok(), "the end that was confirmed is logged as an error: {created:?}");
        assert_eq!(fs::read(&path).unwrap(), b"an earlier drain's");
    }

    #[test]
    fn a_socket_is_neither_removed_nor_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let _envoy = std::os::unix::net::UnixListener::bind(&path).unwrap();
        for (name, work) in [("create", create_anew as fn(&Path) -> _), ("remove", remove_if_there)]
        {
            let error = work(&path).unwrap_err().to_string();
            assert_eq!(error, "there is a socket", "{name}");
            assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket(), "{name}");
        }
    }
}
