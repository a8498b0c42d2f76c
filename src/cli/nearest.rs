//! The known name that a mistyped one probably means.

/// More edits than this make another word.
const MAX_DISTANCE: usize = 2;

/// Shorter beginnings than this fit too many names.
const MIN_PREFIX: usize = 3;

/// The known name with the fewest edits between it and `name`, if these are few or `name` is its
/// beginning. The first of several that are equally near.
pub fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let mut best = None;
    let mut least = usize::MAX;
    for known in known {
        // The difference in length is a lower bound, which spares the work for a long name.
        let distance = match known.len().abs_diff(name.len()) {
            ..=MAX_DISTANCE => distance(&name, known),
            far => far,
        };
        let is_near = distance <= MAX_DISTANCE.min(known.len() / 2)
            || name.len() >= MIN_PREFIX && known.starts_with(&name);
        if is_near && distance < least {
            (best, least) = (Some(*known), distance);
        }
    }
    best
}

/// The insertions, deletions and replacements of a byte between two words (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (deleted, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = deleted + 1;
        for (at, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_near_to_the_one_that_is_meant() {
        let known = ["check-interval", "check-delay", "drain-delay", "exclude", "json", "watch"];
        for (name, expected) in [
            ("chek-delay", Some("check-delay")),
            ("check-dealy", Some("check-delay")),
            ("check_delay", Some("check-delay")),
            ("CHECK-DELAY", Some("check-delay")),
            ("heck-delay", Some("check-delay")),
            ("check-delays", Some("check-delay")),
            ("check", Some("check-delay")),
            ("check-i", Some("check-interval")),
            ("drain", Some("drain-delay")),
            ("excldue", Some("exclude")),
            ("jsom", Some("json")),
            ("jso", Some("json")),
            ("watch", Some("watch")),
            ("delay", None),
            ("ch", None),
            ("no-restore", None),
            ("quick", None),
            ("speed", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, &known), expected, "{name}");
        }
        assert_eq!(nearest(&"check-delay".repeat(1000), &known), None);
        assert_eq!(nearest("\u{fc}ber", &known), None);
        assert_eq!(nearest("cat", &["cut", "cot"]), Some("cut"), "the first of equally near ones");
    }

    #[test]
    fn the_distance_is_the_number_of_edits() {
        for (from, to, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("abc", "abd", 1),
            ("abc", "bc", 1),
            ("abc", "acb", 2),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(from, to), edits, "{from} {to}");
        }
    }
}
