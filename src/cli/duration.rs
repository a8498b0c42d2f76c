//! Durations as Go writes them (`time.ParseDuration`), since the command line is Contour's.

use std::fmt::Write as _;
use std::time::Duration;

/// Go holds a duration in an `i64` of nanoseconds, about 292 years.
const MAX_NANOS: u128 = i64::MAX as u128;

/// Parses `5s`, `1m30s`, `300ms`, `1.5h`, `.5s`, `+5s`, `0`.
///
/// # Errors
/// A clause that fits behind "is", when the text is not of Go's grammar, is negative, or is
/// longer than Go can hold.
pub fn parse(text: &str) -> Result<Duration, &'static str> {
    const GRAMMAR: &str = "not a duration such as 5s, 1m30s or 300ms";
    let mut rest = match text.strip_prefix('-') {
        Some(magnitude) => {
            // "-0" is zero to Go as well.
            return match parse(magnitude) {
                Ok(Duration::ZERO) if !magnitude.starts_with(['-', '+']) => Ok(Duration::ZERO),
                Ok(_) => Err("negative"),
                Err(reason) => Err(reason),
            };
        }
        None => text.strip_prefix('+').unwrap_or(text),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(GRAMMAR);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => split_digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(GRAMMAR);
        }
        let unit_end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let Some(unit_nanos) = nanos_of(unit) else {
            return Err(if unit.is_empty() {
                "without a unit (ns, us, ms, s, m, h)"
            } else {
                GRAMMAR
            });
        };
        let whole = if whole.is_empty() { Ok(0) } else { whole.parse::<u64>() };
        let whole = whole.map_err(|_| TOO_LONG)?;
        total += u128::from(whole) * unit_nanos + fraction_of(fraction, unit_nanos);
        if total > MAX_NANOS {
            return Err(TOO_LONG);
        }
        rest = after;
    }
    // `total` is at most MAX_NANOS, which an u64 holds.
    Ok(Duration::from_nanos(total as u64))
}

const TOO_LONG: &str = "longer than 2562047h47m16s";

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn nanos_of(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        // Go takes the micro sign and the Greek letter.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// The fraction's digits, of a unit; what is below a nanosecond is cut off.
fn fraction_of(digits: &str, unit_nanos: u128) -> u128 {
    // 18 digits of an hour fit into an u128 with room to spare.
    let digits = &digits[..digits.len().min(18)];
    digits.parse::<u128>().map_or(0, |value| value * unit_nanos / 10_u128.pow(digits.len() as u32))
}

/// Writes a duration so that [`parse`] reads the same one: `1m30s`, `300ms`, `0s`.
pub fn format(duration: Duration) -> String {
    let mut text = String::new();
    let seconds = duration.as_secs();
    for (value, unit) in [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')] {
        if value > 0 {
            // Writing to a String does not fail.
            let _ = write!(text, "{value}{unit}");
        }
    }
    let nanos = duration.subsec_nanos();
    for (value, unit) in
        [(nanos / 1_000_000, "ms"), (nanos / 1_000 % 1_000, "us"), (nanos % 1_000, "ns")]
    {
        if value > 0 {
            let _ = write!(text, "{value}{unit}");
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nanos(text: &str) -> Result<u128, &'static str> {
        parse(text).map(|duration| duration.as_nanos())
    }

    #[test]
    fn takes_what_go_takes() {
        for (text, expected) in [
            ("0", 0),
            ("-0", 0),
            ("+0", 0),
            ("0s", 0),
            ("-0s", 0),
            ("5s", 5_000_000_000),
            ("+5s", 5_000_000_000),
            ("1m30s", 90_000_000_000),
            ("300ms", 300_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("1h0.5m1s", 3_631_000_000_000),
            ("7ns", 7),
            ("3us", 3_000),
            ("3\u{b5}s", 3_000),
            ("3\u{3bc}s", 3_000),
            ("0.1234567891234567891s", 123_456_789),
            // More digits than an u128 holds.
            ("0.5000000000000000000000000000000000000000h", 1_800_000_000_000),
            ("2562047h47m16.854775807s", i64::MAX as u128),
            ("9223372036854775807ns", i64::MAX as u128),
        ] {
            assert_eq!(nanos(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for text in [
            "", "+", "-", "s", ".s", ".", "1", "5", "1 s", " 5s", "5s ", "2 days", "1M", "1d",
            "5S", "--0", "-+0", "--5s", "+-5s", "-+5s", "1s-1s", "1e3s", "0x5s", "5s5", "\u{663}s",
            "1..5s", "1s.",
        ] {
            assert!(parse(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(parse("-5s"), Err("negative"));
        assert_eq!(parse("-0h1ns"), Err("negative"));
        for text in ["5", "-5"] {
            assert_eq!(parse(text), Err("without a unit (ns, us, ms, s, m, h)"), "{text}");
        }
        assert_eq!(parse("2 days"), Err("not a duration such as 5s, 1m30s or 300ms"));
        for text in [
            "9223372036854775808ns",
            "2562048h",
            "99999999999999999999s",
            "1h9223372036854775807ns",
        ] {
            assert_eq!(parse(text), Err("longer than 2562047h47m16s"), "{text}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for (nanos, text) in [
            (0, "0s"),
            (5_000_000_000, "5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h"),
            (3_661_300_002_001, "1h1m1s300ms2us1ns"),
            (300_000_000, "300ms"),
        ] {
            let duration = Duration::from_nanos(nanos);
            assert_eq!(format(duration), text);
            assert_eq!(parse(text), Ok(duration));
        }
    }
}
