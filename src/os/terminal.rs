//! The terminal of a command that shows something in place.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::read;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

use super::output::show;
use super::signals;

/// The alternate screen, without a cursor; what is wider than the screen is not wrapped.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Columns and rows of the terminal on stdout, where there is one that says so.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// What the user or the system wants of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    None,
    /// To show it again, since the size has changed.
    Redraw,
    Leave,
}

/// The terminal, taken until this is dropped: stdout shows the alternate screen, and stdin, where
/// it is the terminal too, gives each key at once.
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
        let mode = tcgetattr(stdin()).ok();
        let terminal = Self { signals, mode };
        if let Some(mut mode) = terminal.mode.clone() {
            // Keys that make a signal give their character, so that none of them stops the process
            // while the terminal is not as it was.
            mode.local_modes -=
                LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
            mode.special_codes[SpecialCodeIndex::VMIN] = 1;
            mode.special_codes[SpecialCodeIndex::VTIME] = 0;
            // It fails where the terminal has gone, which poll(2) reports.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &mode);
        }
        show(ENTER, true);
        Ok(terminal)
    }

    /// Readable when there may be a wish, as stdin is if it [has keys](Self::has_keys).
    pub fn signals(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    /// Whether stdin is the terminal, too.
    pub fn has_keys(&self) -> bool {
        self.mode.is_some()
    }

    /// What is wished; `typed`: stdin is readable.
    pub fn wish(&self, typed: bool) -> Wish {
        let mut keys = [0; 64];
        let leaves = typed
            && match read(stdin(), &mut keys) {
                Ok(length @ 1..) => keys[..length].iter().any(|key| b"qQ\x03".contains(key)),
                // The terminal has gone.
                _ => true,
            };
        match self.signals.read_signal() {
            _ if leaves => Wish::Leave,
            Ok(Some(signal)) if signal.ssi_signo == Signal::SIGWINCH as u32 => Wish::Redraw,
            Ok(Some(_)) => Wish::Leave,
            _ => Wish::None,
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        show(LEAVE, true);
        if let Some(mode) = &self.mode {
            let _ = tcsetattr(stdin(), OptionalActions::Now, mode);
        }
    }
}
