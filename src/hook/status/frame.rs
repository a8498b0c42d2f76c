//! What is shown of a page on a terminal.

/// The bytes that show a page, and lines on top of it, on a screen of so many columns and rows. Nothing is
/// cleared before it is written over, so that nothing flickers.
pub fn frame(top: &str, page: &str, (columns, rows): (u16, u16)) -> String {
    let mut out = "\x1b[H".to_owned();
    let top = top.lines().map(|line| (line, columns.into()));
    // The page was laid out for the screen; and not all of its characters are seen.
    let page = page.lines().map(|line| (line, usize::MAX));
    for (row, (line, columns)) in (0..rows).zip(top.chain(page)) {
        // To clear behind a line that ends in the last column would clear that, too.
        out += if row == 0 { "\x1b[K" } else { "\r\n\x1b[K" };
        out.extend(line.chars().take(columns));
        if row + 1 == rows {
            return out;
        }
    }
    out + "\r\n\x1b[J"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_the_screen_and_is_written_over_the_one_before() {
        let page = "phase: idle\nopen: 3\n";
        assert_eq!(
            frame("12:00:00 UTC", page, (80, 24)),
            "\x1b[H\x1b[K12:00:00 UTC\r\n\x1b[Kphase: idle\r\n\x1b[Kopen: 3\r\n\x1b[J"
        );
        assert_eq!(
            frame("12:00\nlost: 1", "", (5, 3)),
            "\x1b[H\x1b[K12:00\r\n\x1b[Klost:\r\n\x1b[J"
        );
        // A line break in the last row would scroll.
        assert_eq!(
            frame("12:00:00 UTC", page, (5, 3)),
            "\x1b[H\x1b[K12:00\r\n\x1b[Kphase: idle\r\n\x1b[Kopen: 3"
        );
        assert_eq!(frame("12:00:00 UTC", page, (20, 1)), "\x1b[H\x1b[K12:00:00 UTC");
    }
}
