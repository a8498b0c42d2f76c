//! What is shown of a page on a terminal, in the place of the page before.
//!
//! On the normal screen, and as a shell needs it after each frame: the program may be killed at any time, as
//! it is where the sidecar in whose container it runs ends with its pod, and then the latest page stays.

/// A page in place.
#[derive(Default)]
pub struct Frame {
    size: (u16, u16),
    /// How many rows the cursor is below the page's first.
    below: u16,
    /// The page fills the screen, so that the cursor is in its last row.
    is_full: bool,
}

impl Frame {
    /// The bytes that show a page, and lines on top of it, on a screen of so many columns and rows. Nothing
    /// is cleared before it is written over, so that nothing flickers.
    pub fn next(&mut self, top: &str, page: &str, size: (u16, u16)) -> String {
        // What is wider than the screen is not wrapped.
        let mut out = "\x1b[?7l".to_owned();
        if self.below > 0 && size != self.size {
            // Terminals differ in where lines are then.
            out += "\x1b[H\x1b[2J";
            self.below = 0;
        }
        out.push('\r');
        if self.below > 0 {
            out += &format!("\x1b[{}A", self.below);
        }
        let (columns, rows) = size;
        let top = top.lines().map(|line| (line, columns.into()));
        // The page was laid out for the screen; and not all of its characters are seen.
        let page = page.lines().map(|line| (line, usize::MAX));
        (self.size, self.below, self.is_full) = (size, 0, false);
        for (row, (line, columns)) in (0..rows).zip(top.chain(page)) {
            // To clear behind a line that ends in the last column would clear that, too.
            out += if row == 0 { "\x1b[K" } else { "\r\n\x1b[K" };
            out.extend(line.chars().take(columns));
            (self.below, self.is_full) = (row, row + 1 == rows);
        }
        if !self.is_full {
            out += "\r\n\x1b[J";
            self.below += 1;
        }
        out + "\x1b[?7h"
    }

    /// The bytes that leave the page where it is.
    pub fn end(&self) -> &'static str {
        if self.is_full { "\r\n" } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_written_over_the_one_before() {
        let mut frame = Frame::default();
        let first = frame.next("", "phase: idle\nopen: 3\n", (80, 24));
        assert_eq!(first, "\x1b[?7l\r\x1b[Kphase: idle\r\n\x1b[Kopen: 3\r\n\x1b[J\x1b[?7h");
        let second = frame.next("lost", "phase: idle\n", (80, 24));
        assert_eq!(second, "\x1b[?7l\r\x1b[2A\x1b[Klost\r\n\x1b[Kphase: idle\r\n\x1b[J\x1b[?7h");
        assert_eq!(frame.end(), "");
    }

    #[test]
    fn what_does_not_fit_is_cut_and_nothing_scrolls() {
        let mut frame = Frame::default();
        let first = frame.next("12:00\nlost: 1", "phase: idle\nopen: 3\n", (5, 3));
        assert_eq!(first, "\x1b[?7l\r\x1b[K12:00\r\n\x1b[Klost:\r\n\x1b[Kphase: idle\x1b[?7h");
        assert_eq!(frame.end(), "\r\n");
        let second = frame.next("12:00", "", (5, 3));
        assert_eq!(second, "\x1b[?7l\r\x1b[2A\x1b[K12:00\r\n\x1b[J\x1b[?7h");
        assert_eq!(Frame::default().next("12:00", "x", (5, 1)), "\x1b[?7l\r\x1b[K12:00\x1b[?7h");
    }

    #[test]
    fn a_terminal_of_another_size_is_cleared() {
        let mut frame = Frame::default();
        frame.next("", "a\nb\n", (80, 24));
        let next = frame.next("", "a\nb\n", (40, 24));
        assert!(next.starts_with("\x1b[?7l\x1b[H\x1b[2J\r\x1b[Ka"), "{next:?}");
    }
}
