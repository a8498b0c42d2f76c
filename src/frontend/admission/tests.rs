//! The decisions as tables.

use super::*;

fn source(address: &str) -> SourceKey {
    address.parse::<IpAddr>().unwrap().into()
}

#[test]
fn a_source_is_an_address_or_a_64() {
    assert_eq!(source("10.0.0.1"), source("::ffff:10.0.0.1"));
    assert_ne!(source("10.0.0.1"), source("10.0.0.2"));
    assert_eq!(source("2001:db8::1"), source("2001:db8::2:0:0:1"));
    assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    assert_ne!(source("0.0.0.0"), source("::"));
}

/// A source for each letter.
fn key(letter: char) -> SourceKey {
    SourceKey(letter.into())
}

/// `waiting`: the source of each waiter, oldest first, in capitals if it is paired; their ids count
/// from 1.
#[test]
fn waiting_slots_are_shared_among_sources() {
    let evict = |id| Admission::Evict(ConnectionId(id));
    for (waiting, newcomer, expected) in [
        // Slots are free.
        ("", 'a', Admission::Admit),
        ("aaa", 'a', Admission::Admit),
        ("abc", 'd', Admission::Admit),
        // The source with most loses its newest to a source with fewer.
        ("aaaa", 'b', evict(4)),
        ("aaba", 'b', evict(4)),
        ("baba", 'c', evict(4)),
        ("cbcc", 'd', evict(4)),
        ("aaab", 'c', evict(3)),
        ("abbc", 'd', evict(3)),
        ("caab", 'd', evict(3)),
        // A source gains nothing by connecting often.
        ("aaaa", 'a', Admission::Reject),
        ("baba", 'b', Admission::Reject),
        ("abcc", 'a', Admission::Reject),
        ("aaab", 'a', Admission::Reject),
        // A paired one is the last that its source loses.
        ("aaaA", 'b', evict(3)),
        ("aaAA", 'b', evict(2)),
        ("Aaab", 'c', evict(3)),
        ("AAAA", 'b', evict(4)),
        ("Bbba", 'c', evict(3)),
        // There are as many sources as slots.
        ("abcd", 'e', Admission::Reject),
        ("abcd", 'a', Admission::Reject),
    ] {
        let waiter = |(letter, id): (char, u64)| Waiter {
            id: ConnectionId(id),
            source: key(letter.to_ascii_lowercase()),
            is_paired: letter.is_ascii_uppercase(),
        };
        let waiting: Vec<_> = waiting.chars().zip(1..).map(waiter).collect();
        assert_eq!(admit(&waiting, key(newcomer), 4), expected, "{waiting:?} {newcomer}");
    }
}

#[test]
fn as_many_are_accepted_as_fit_or_can_be_evicted() {
    for (held, evictable, brief, expected) in [
        // As many as are free, and a batch of 4 of the limit of 64.
        (0, 0, false, 64),
        (60, 0, false, 4),
        (60, 3, false, 7),
        (60, 60, false, 8),
        (64, 64, false, 4),
        (64, 3, false, 3),
        // Where all wait, newcomers do so in the backlog.
        (64, 0, false, 0),
        (64, 0, true, 0),
        // The last evictable one is kept while others wait only briefly.
        (64, 1, false, 1),
        (64, 1, true, 0),
        (64, 2, true, 1),
        (64, 63, true, 4),
        // Never more than a batch beyond the limit.
        (66, 60, false, 2),
        (68, 60, false, 0),
        (70, 60, false, 0),
    ] {
        let case = format!("{held} held, {evictable} evictable, brief: {brief}");
        assert_eq!(acceptable(held, evictable, brief, 64), expected, "{case}");
    }
    assert_eq!(acceptable(4, 4, false, 4), 1, "a batch is never empty");
}

/// Connections as text: each is the letter of its source and that of its rank (No request,
/// Responded, In progress, Waiting), oldest first; their ids count from 1.
fn entries(text: &str) -> Vec<Entry> {
    let entry = |(text, id): (&str, u64)| Entry {
        id: ConnectionId(id),
        source: key(text.chars().next().unwrap()),
        rank: match &text[1..] {
            "N" => EvictionRank::NoRequest,
            "R" => EvictionRank::Responded,
            "I" => EvictionRank::InProgress,
            "W" => EvictionRank::Waiting,
            other => panic!("no rank has the letter {other}"),
        },
    };
    text.split_whitespace().zip(1..).map(entry).collect()
}

#[test]
fn evictions_take_the_largest_source_by_rank_and_the_oldest_first() {
    use EvictionRank::{InProgress, NoRequest, Responded};
    for (text, last, excess, rank, candidates, count) in [
        // By rank, oldest first.
        ("aI bN cR", 3, 1, NoRequest, &[2][..], 1),
        ("aI bW cR", 3, 1, Responded, &[3], 1),
        ("aI bW cI", 3, 1, InProgress, &[1, 3], 1),
        ("aN bN cN dI", 4, 1, NoRequest, &[1, 2, 3], 1),
        // Of one rank half at a time, rounded up, and no more than are too many.
        ("aN bN cN dN", 4, 4, NoRequest, &[1, 2, 3, 4], 2),
        ("aN bN cN", 3, 4, NoRequest, &[1, 2, 3], 2),
        ("aN bI", 2, 2, NoRequest, &[1], 1),
        ("aN bN cN dN eN", 5, 2, NoRequest, &[1, 2, 3, 4, 5], 2),
        // The largest source alone, even if others have a lower rank.
        ("aN bI bI", 3, 1, InProgress, &[2, 3], 1),
        ("aN bR bI cN", 4, 1, Responded, &[2], 1),
        ("aN aN bI bI bI", 5, 1, InProgress, &[3, 4, 5], 1),
        // Waiting connections are never evicted, and do not make a source large.
        ("aW aW bN bN cN", 5, 1, NoRequest, &[3, 4], 1),
        ("aW aN bN cN", 4, 1, NoRequest, &[2, 3, 4], 1),
        // Connections accepted in this round come last, in their ranks.
        ("aI bN cN", 1, 1, InProgress, &[1], 1),
        ("aW bI cR", 1, 1, Responded, &[3], 1),
        ("aW bI cI", 1, 1, InProgress, &[2, 3], 1),
        // They count toward their source, even those that wait.
        ("aN aN bN cN bW bW", 4, 1, NoRequest, &[3], 1),
        ("aN bN cN bN", 3, 1, NoRequest, &[2], 1),
        // Unless that source has none to evict.
        ("aN bN cW cW cW", 2, 1, NoRequest, &[1, 2], 1),
    ] {
        let (found, of) = next_evictions(entries(text), ConnectionId(last), excess);
        let ids: Vec<_> = found.iter().map(|entry| entry.id.0).collect();
        assert_eq!((&ids[..], of), (candidates, count), "{text}, accepted after {last}");
        assert!(found.iter().all(|entry| entry.rank == rank), "{text}: {found:?}");
    }
    for text in ["", "aW", "aW aW bW"] {
        assert_eq!(next_evictions(entries(text), ConnectionId(9), 1), (vec![], 0), "{text}");
    }
}

#[test]
fn a_source_is_the_largest_if_it_has_more_than_one() {
    for (sources, expected) in
        [("", None), ("abc", None), ("abbc", Some('b')), ("ababaab", Some('a'))]
    {
        let found = largest_source(&mut sources.chars().map(key));
        assert_eq!(found, expected.map(key), "{sources}");
    }
    let many = (0..255).map(|n| source(&format!("10.1.1.{n}")));
    assert_eq!(largest_source(&mut many.chain([source("10.1.1.0")])), Some(source("10.1.1.0")));
    let many = (0..255).map(|n| source(&format!("10.1.1.{n}")));
    let late = ["10.1.1.254", "10.0.0.1"].map(source);
    assert_eq!(largest_source(&mut many.chain(late)), None, "only the first 16 are counted");
}
