//! The terminal of a command that shows something in place.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use nix::unistd::read;
use rustix::stdio::{stdin, stdout};
use rustix::termios::tcgetwinsize;

use super::signals;

/// Columns and rows of the terminal on stdout, where there is one that says so.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// The terminal, taken until this is dropped: stdin, where it is the terminal too, gives each key at once.
pub struct Terminal {
    signals: SignalFd,
    /// Stdin's, as it was.
    mode: Option<Termios>,
}

impl Terminal {
    /// Takes signals first: one that ended the process would leave the terminal as it is now.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn take() -> io::Result<Self> {
        let signals = signals::take()?;
        // nix's, since rustix's needs TCGETS2, which qemu's emulation of a kernel does not have.
        let mode = tcgetattr(stdin()).ok();
        let terminal = Self { signals, mode };
        if let Some(mut mode) = terminal.mode.clone() {
            // Keys that make a signal give their character, so that none of them stops the process
            // while the terminal is not as it was.
            mode.local_flags -=
                LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN;
            mode.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
            mode.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
            // It fails where the terminal has gone, which poll(2) reports.
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, &mode);
        }
        Ok(terminal)
    }

    /// Readable when a signal has come: also that of another size.
    pub fn signals(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    /// Whether stdin is the terminal, too.
    pub fn has_keys(&self) -> bool {
        self.mode.is_some()
    }

    /// Whether a key or a signal says that it is to be left; `typed`: stdin is readable.
    pub fn is_left(&self, typed: bool) -> bool {
        if typed {
            let mut keys = [0; 64];
            // Without any the terminal has gone.
            let length = read(stdin(), &mut keys).unwrap_or_default();
            if length == 0 || keys[..length].iter().any(|key| b"qQ\x03".contains(key)) {
                return true;
            }
        }
        let signal = self.signals.read_signal();
        matches!(signal, Ok(Some(signal)) if signal.ssi_signo != Signal::SIGWINCH as u32)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(mode) = &self.mode {
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, mode);
        }
    }
}
