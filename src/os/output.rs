//! Lines on stdout or stderr, whose reader may stand still: no line waits for it.

use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;
use rustix::stdio::stdout;

/// A pipe that can be written takes this much without waiting (`PIPE_BUF`), and in one piece.
const PIECE: usize = 4096;

/// A reader that has begun to read a longer line reads on within this, in milliseconds.
const READ_ON: u8 = 100;

/// Writes lines, one thread after the other.
#[derive(Debug, Default)]
pub struct Lines {
    /// Whether the latest was cut short.
    cut: Mutex<bool>,
}

impl Lines {
    pub const fn new() -> Self {
        Self { cut: Mutex::new(false) }
    }

    /// Writes a line in pieces, each when there is room for it; returns whether all of it was written.
    /// It waits for room only in the middle of a line, and for no longer than 0.1 s a piece.
    pub fn write(&self, output: impl AsFd, line: &[u8]) -> bool {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        if *cut && !write_piece(&output, b"\n", PollTimeout::ZERO) {
            return false;
        }
        *cut = false;
        let mut wait = PollTimeout::ZERO;
        for piece in line.chunks(PIECE) {
            if !write_piece(&output, piece, wait) {
                *cut = wait != PollTimeout::ZERO;
                return false;
            }
            wait = PollTimeout::from(READ_ON);
        }
        true
    }
}

/// Writes text to stdout in small pieces, each when there is room for it; returns whether all of it was
/// written. `hurries`: what a terminal that has stopped (Ctrl-S, a network that stalls) does not take
/// within 0.1 s is dropped.
pub fn show(text: &str, hurries: bool) -> bool {
    // A terminal that takes anything takes this much.
    const PIECE: usize = 256;
    let wait = if hurries { PollTimeout::from(READ_ON) } else { PollTimeout::NONE };
    text.as_bytes().chunks(PIECE).all(|piece| write_piece(&stdout(), piece, wait))
}

fn write_piece(output: &impl AsFd, mut piece: &[u8], wait: PollTimeout) -> bool {
    while !piece.is_empty() {
        let mut room = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut room, wait) {
            Ok(1..) | Err(Errno::EINTR) => {}
            _ => return false,
        }
        match write(output, piece) {
            Ok(length) => piece = &piece[length..],
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read as _, Write as _, pipe};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    fn read(reader: &mut PipeReader, length: usize) -> String {
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    fn long(c: char) -> String {
        format!("{}\n", String::from(c).repeat(2 * PIECE))
    }

    /// How many pieces a pipe takes.
    const PIECES: usize = 16;

    #[test]
    fn a_line_is_lost_at_once_where_nothing_is_read() {
        let (mut reader, mut writer) = pipe().unwrap();
        let lines = Lines::new();
        writer.write_all(&[b'.'; PIECES * PIECE]).unwrap();
        // This thread itself may be kept from the processor, but not each time.
        let times = [(); 5].map(|()| {
            let start = Instant::now();
            assert!(!lines.write(&writer, b"lost\n"));
            start.elapsed()
        });
        assert!(times.iter().any(|took| *took < Duration::from_millis(50)), "{times:?}");
        read(&mut reader, PIECES * PIECE);
        assert!(lines.write(&writer, b"next\n"));
        assert_eq!(read(&mut reader, 5), "next\n");
    }

    #[test]
    fn a_longer_line_is_cut_where_nothing_more_is_read_and_ends_before_the_next_one() {
        let (mut reader, mut writer) = pipe().unwrap();
        let lines = Lines::new();
        writer.write_all(&vec![b'.'; (PIECES - 1) * PIECE]).unwrap();
        assert!(!lines.write(&writer, long('x').as_bytes()));
        assert!(!lines.write(&writer, b"lost\n"), "and the end of the one that was cut");
        read(&mut reader, (PIECES - 1) * PIECE);
        assert!(lines.write(&writer, b"next\n"));
        assert_eq!(read(&mut reader, PIECE + 6), format!("{}\nnext\n", "x".repeat(PIECE)));
        assert!(lines.write(&writer, b"last\n"));
        assert_eq!(read(&mut reader, 5), "last\n");
    }

    #[test]
    fn a_longer_line_waits_for_a_reader_that_reads_on() {
        let (mut reader, mut writer) = pipe().unwrap();
        writer.write_all(&vec![b'.'; (PIECES - 1) * PIECE]).unwrap();
        let written = thread::spawn(move || Lines::new().write(&writer, long('x').as_bytes()));
        read(&mut reader, (PIECES - 1) * PIECE);
        assert_eq!(read(&mut reader, 2 * PIECE + 1), long('x'));
        assert!(written.join().unwrap());
    }

    #[test]
    fn an_output_that_is_closed_takes_nothing() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        assert!(!Lines::new().write(&writer, b"lost\n"));
    }
}
