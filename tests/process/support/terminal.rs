//! The program at a pseudo-terminal, and what that shows.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use super::process::{command, program};
use super::{PATIENCE, lock, try_wait_for, wait_for};

/// A terminal of these columns and rows: its controlling end, and the end that programs have.
pub fn open_terminal(size: (u16, u16)) -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controller = openpt(flags).expect("open a terminal");
    unlockpt(&controller).expect("unlock the terminal");
    let end = ioctl_tiocgptpeer(&controller, flags).expect("open the terminal's other end");
    set_size(&end, size);
    (controller, end)
}

fn set_size(terminal: &OwnedFd, (columns, rows): (u16, u16)) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("set the terminal's size");
}

/// A run of the program whose stdin, stdout and stderr are a terminal; killed when it is dropped.
#[derive(Debug)]
pub struct AtTerminal {
    child: Child,
    controller: Option<File>,
    end: Option<OwnedFd>,
    screen: Arc<Mutex<Screen>>,
    reader: Option<JoinHandle<()>>,
    mode: String,
    hung_up: Arc<AtomicBool>,
}

impl AtTerminal {
    /// Runs the program on a terminal of this size, with these variables in its environment.
    #[track_caller]
    pub fn run(args: &[&str], size: (u16, u16), env: &[(&str, &str)]) -> Self {
        let mut command = command(&program());
        command.args(args).env_remove("NO_COLOR").env("TERM", "xterm");
        command.envs(env.iter().copied());
        Self::spawn(command, size)
    }

    #[track_caller]
    fn spawn(mut command: Command, size: (u16, u16)) -> Self {
        let (controller, end) = open_terminal(size);
        // Before the program changes it.
        let mode = mode(&end);
        let share = || end.try_clone().expect("share the terminal");
        command.stdin(share()).stdout(share()).stderr(share());
        let mut at_terminal = Self {
            mode,
            hung_up: Arc::default(),
            child: command.spawn().expect("start the program"),
            controller: Some(File::from(controller)),
            screen: Arc::new(Mutex::new(Screen::new(size))),
            end: None,
            reader: None,
        };
        // Its copies of the other end are the program's, now.
        drop(command);
        at_terminal.end = Some(end);
        let reader = at_terminal.controller.as_ref().expect("it was just opened").try_clone();
        let (mut reader, screen) = (reader.expect("share it"), Arc::clone(&at_terminal.screen));
        let hung_up = Arc::clone(&at_terminal.hung_up);
        at_terminal.reader = Some(thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !hung_up.load(Ordering::Relaxed) {
                let mut readable = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
                match poll(&mut readable, PollTimeout::from(20_u8)) {
                    Ok(0) | Err(Errno::EINTR) => continue,
                    _ => {}
                }
                // An error is the end, where no process has the other end any more.
                let Ok(length @ 1..) = reader.read(&mut buffer) else { break };
                lock(&screen).write(&buffer[..length]);
            }
        }));
        at_terminal
    }

    /// What the terminal shows now.
    pub fn screen(&self) -> Screen {
        lock(&self.screen).clone()
    }

    /// Waits until the terminal shows what is wanted.
    #[track_caller]
    pub fn wait_screen(&self, what: &str, wanted: impl Fn(&Screen) -> bool) -> Screen {
        let found = try_wait_for(PATIENCE, || Some(self.screen()).filter(&wanted));
        found.unwrap_or_else(|| panic!("waited for {what}; {}", self.screen().report()))
    }

    /// Waits until the terminal shows this.
    #[track_caller]
    pub fn wait_shown(&self, text: &str) -> Screen {
        self.wait_screen(text, |screen| screen.shows(text))
    }

    /// Presses keys.
    #[track_caller]
    pub fn press(&self, keys: &str) {
        let mut controller = self.controller.as_ref().expect("the terminal has gone");
        controller.write_all(keys.as_bytes()).expect("press keys");
    }

    pub fn resize(&self, size: (u16, u16)) {
        lock(&self.screen).resize(size);
        set_size(self.end.as_ref().expect("the terminal has gone"), size);
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().expect("a process id"));
        kill(pid, signal).expect("signal the program");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Takes the terminal away, as the end of a connection to it does.
    pub fn hang_up(&mut self) {
        self.end = None;
        self.controller = None;
        // The reader has the last copy of the controlling end.
        self.hung_up.store(true, Ordering::Relaxed);
    }

    /// The exit status, once it has ended.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let screen = Arc::clone(&self.screen);
        let wait = || self.child.try_wait().expect("wait for the program");
        let status = try_wait_for(PATIENCE, wait);
        status.unwrap_or_else(|| panic!("it does not end; {}", lock(&screen).report()))
    }

    /// Asserts that it ends with 0, and leaves the terminal as it was. Returns what that shows.
    #[track_caller]
    pub fn assert_leaves(&mut self) -> Screen {
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.screen().report());
        let end = self.end.as_ref().expect("the terminal has gone");
        assert_eq!(mode(end), self.mode, "the terminal's mode");
        self.wait_screen("the screen as it was", |screen| screen.is_normal())
    }
}

impl Drop for AtTerminal {
    fn drop(&mut self) {
        let _ended_before = self.child.kill();
        let _ = self.child.wait();
        self.end = None;
        let reader = self.reader.take().expect("it is joined once");
        let joined = reader.join();
        assert!(joined.is_ok() || thread::panicking(), "what was shown is wrong");
    }
}

/// All of a terminal's mode, as text.
fn mode(terminal: &OwnedFd) -> String {
    format!("{:?}", tcgetattr(terminal).expect("read the terminal's mode"))
}

type Lines = Vec<Vec<char>>;

/// Column and row.
type Position = (usize, usize);

/// As much of a terminal as the program uses. What it does not know fails the test.
#[derive(Clone, Debug)]
pub struct Screen {
    size: (usize, usize),
    /// The lines so far, of which the last are shown.
    lines: Lines,
    cursor: Position,
    wraps: bool,
    /// The start of a sequence that is not complete.
    unread: Vec<u8>,
    /// How often a page was written.
    pub pages: usize,
    /// Whether a sequence for colours has come.
    pub has_colours: bool,
    /// What is wrong with what has come.
    wrong: Vec<String>,
}

impl Screen {
    pub fn new((columns, rows): (u16, u16)) -> Self {
        Self {
            size: (columns.into(), rows.into()),
            lines: Vec::new(),
            cursor: (0, 0),
            wraps: true,
            unread: Vec::new(),
            pages: 0,
            has_colours: false,
            wrong: Vec::new(),
        }
    }

    fn resize(&mut self, (columns, rows): (u16, u16)) {
        self.size = (columns.into(), rows.into());
        // What a terminal does with what it shows differs.
        self.lines.clear();
    }

    /// Shows what a program has written.
    pub fn write(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.unread);
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(error) => str::from_utf8(&bytes[..error.valid_up_to()]).expect("valid"),
        };
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let after = &rest[c.len_utf8()..];
            rest = match (c, after.strip_prefix('[')) {
                ('\x1b', None) if after.is_empty() => break,
                ('\x1b', None) => panic!("an escape sequence before {after:?}"),
                ('\x1b', Some(sequence)) => {
                    let Some(end) = sequence.find(|c: char| ('@'..='~').contains(&c)) else {
                        break;
                    };
                    self.control(&sequence[..=end]);
                    &sequence[end + 1..]
                }
                _ => {
                    self.put(c);
                    after
                }
            };
        }
        let read = text.len() - rest.len();
        self.unread = bytes[read..].to_vec();
    }

    fn control(&mut self, sequence: &str) {
        match sequence {
            "H" => self.cursor = (0, self.top()),
            "2J" => self.lines.truncate(self.top()),
            _ if sequence.ends_with('A') => {
                let rows: usize = sequence[..sequence.len() - 1].parse().expect("a number");
                if self.cursor.1 < self.top() + rows {
                    self.wrong.push(format!("{rows} rows up are beyond the screen's top"));
                }
                self.cursor.1 = self.cursor.1.saturating_sub(rows);
            }
            "K" => {
                let column = self.cursor.0;
                self.line().truncate(column);
            }
            "J" => {
                let (column, row) = self.cursor;
                self.line().truncate(column);
                self.lines.truncate(row + 1);
            }
            "?7l" => {
                self.wraps = false;
                self.pages += 1;
            }
            "?7h" => self.wraps = true,
            _ if sequence.ends_with('m') => self.has_colours = true,
            _ => panic!("an unknown sequence {sequence:?}"),
        }
    }

    fn line(&mut self) -> &mut Vec<char> {
        let row = self.cursor.1;
        while self.lines.len() <= row {
            self.lines.push(Vec::new());
        }
        &mut self.lines[row]
    }

    fn put(&mut self, c: char) {
        let columns = self.size.0;
        match c {
            '\r' => self.cursor.0 = 0,
            '\n' => {
                self.cursor.1 += 1;
                self.line();
            }
            c if c.is_control() => self.wrong.push(format!("it has {c:?}")),
            c => {
                if self.cursor.0 >= columns {
                    let line: String = self.line().iter().collect();
                    self.wrong.push(format!("{c:?} is beyond column {columns} of {line:?}"));
                }
                let column = self.cursor.0;
                let line = self.line();
                while line.len() <= column {
                    line.push(' ');
                }
                line[column] = c;
                self.cursor.0 += 1;
            }
        }
    }

    /// The lines that are shown.
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().map(|line| line.iter().collect()).collect()
    }

    /// Whether a line has this.
    pub fn shows(&self, text: &str) -> bool {
        self.lines().iter().any(|line| line.contains(text))
    }

    /// Whether one page is there, each in the place of the one before.
    pub fn is_in_place(&self) -> bool {
        let is_first = |line: &&String| line.contains("Z  envoy-shutdown-manager ");
        self.lines().iter().filter(is_first).count() == 1
    }

    /// Whether it is as a shell expects it.
    pub fn is_normal(&self) -> bool {
        self.wraps && self.unread.is_empty()
    }

    /// The first line that is shown.
    fn top(&self) -> usize {
        self.lines.len().saturating_sub(self.size.1)
    }

    /// Asserts that no line was wider than the terminal, and that nothing scrolled.
    #[track_caller]
    pub fn assert_fits(&self) {
        assert!(self.wrong.is_empty(), "{:#?}; {}", self.wrong, self.report());
    }

    pub fn report(&self) -> String {
        format!("page {} on the screen:\n{}", self.pages, self.lines().join("\n"))
    }
}

/// Waits until a process has stopped, by a signal.
#[track_caller]
pub fn wait_stopped(pid: u32) {
    wait_for("a process to stop", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("read its state");
        stat.rsplit_once(") ")?.1.starts_with('T').then_some(())
    });
}
