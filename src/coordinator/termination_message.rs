//! The termination message: how the latest drain ended, in the file that the kubelet makes for it, reads
//! when the container ends, and shows as the container's last state (`kubectl describe pod`).

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;

use crate::drain::Ended;
use crate::observe::log::rfc3339;
use crate::observe::status::whole;
use crate::os::supervisor::bounded;

/// Kubernetes' default of `terminationMessagePath`; nothing inside a container shows another.
const PATH: &str = "/dev/termination-log";

/// In bytes: the kubelet reads no more.
const MAX_LENGTH: usize = 4096;

/// It is on the node's disk, which may hang.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How a drain has ended, and when.
pub fn text(ended: &Ended, now: SystemTime) -> String {
    format!(
        "drain {} ended at {} after {}: {}",
        ended.number,
        rfc3339(now),
        whole(ended.took),
        ended.outcome.explain()
    )
}

/// Writes the message. Outside Kubernetes there is no such file, and nothing depends on it, so an error
/// is not logged.
pub fn write(text: String) {
    if cfg!(loom) {
        return; // A model would write it a million times.
    }
    let write = move || overwrite(Path::new(PATH), &text);
    let _ = bounded("termination-message", TIMEOUT, Box::new(write));
}

/// Creates no file, follows no link, and waits for no reader of a FIFO.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut file = OpenOptions::new().write(true).truncate(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(());
    }
    file.write_all(&text.as_bytes()[..text.floor_char_boundary(MAX_LENGTH)])
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{ErrorKind, Read as _};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::drain::Outcome;

    #[test]
    fn the_text_is_one_sentence_with_the_outcome_the_drain_its_time_and_its_end() {
        let mut ended = Ended {
            number: 3,
            outcome: Outcome::timed_out(Some(2)),
            threshold: 0,
            envoy_hook: true,
            took: Duration::from_millis(80_900),
            last_poll: None,
            accepted: crate::drain::Accepted::default(),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_732_231_758);
        assert_eq!(
            text(&ended, now),
            "drain 3 ended at 2026-11-26T22:30:31.758Z after 1m20s: gave up at the drain timeout: 2 open at \
             the last poll"
        );
        ended.outcome = Outcome::drained(0);
        assert!(text(&ended, now).ends_with(" after 1m20s: drained: no connection is open"));
    }

    #[test]
    fn a_file_is_overwritten_with_no_more_than_the_kubelet_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "an earlier drain's, which is longer").unwrap();
        overwrite(&path, "new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        overwrite(&path, "newer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        // A letter that is cut would be no text.
        overwrite(&path, &("x".repeat(MAX_LENGTH - 1) + "\u{fc}")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "x".repeat(MAX_LENGTH - 1));
    }

    #[test]
    fn no_file_is_created_and_no_link_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["log", "other"].map(|name| folder.path().join(name));
        assert_eq!(overwrite(&path, "new").unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!path.exists(), "created");
        fs::write(&other, "another program's").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(overwrite(&path, "new").is_err());
        assert_eq!(fs::read(&other).unwrap(), b"another program's");
    }

    #[test]
    fn a_fifo_is_neither_waited_for_nor_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let alone = path.clone();
        let alone = move || overwrite(&alone, "new");
        let alone = bounded("test", Duration::from_secs(10), Box::new(alone));
        assert_ne!(alone.unwrap_err().kind(), ErrorKind::TimedOut, "it waits for a reader");
        let flags = OFlag::O_NONBLOCK.bits();
        let mut reader = OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
        overwrite(&path, "new").unwrap();
        let mut read = Vec::new();
        assert!(reader.read_to_end(&mut read).is_ok() && read.is_empty(), "{read:?}");
    }
}
