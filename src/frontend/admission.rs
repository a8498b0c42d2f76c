//! Who may wait when more want to than there are places: nobody can take the place of the one
//! waiter that matters, the kubelet, by coming often.

use std::net::IpAddr;

/// Clients that are taken for one: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceKey(u64);

impl SourceKey {
    /// This machine, over a Unix socket.
    pub const HERE: Self = Self(0);
}

impl From<IpAddr> for SourceKey {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            // A prefix that no network has (RFC 4291, section 2.5.5.2).
            IpAddr::V4(address) => Self(0xffff << 32 | u64::from(u32::from(address))),
            IpAddr::V6(address) => Self((u128::from(address) >> 64) as u64),
        }
    }
}

/// Whether there is a place for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// There is.
    Free,
    /// There is, if the newest of this origin gives way.
    InsteadOf(SourceKey),
    /// There is none.
    Taken,
}

/// Whether there is a place for `newcomer` among `most`, when those from `waiting` have one. The
/// origin with most waiters loses its newest, so one with none gets a place while there are fewer
/// origins than places.
#[must_use]
pub fn place(
    waiting: impl Iterator<Item = SourceKey>,
    newcomer: SourceKey,
    most: usize,
) -> Admission {
    let counts = count(waiting, most);
    if counts.iter().map(|(_, count)| count).sum::<usize>() < most {
        return Admission::Free;
    }
    let own = counts.iter().find(|(origin, _)| *origin == newcomer).map_or(0, |(_, own)| *own);
    match counts.iter().max_by_key(|(_, count)| *count) {
        Some((origin, count)) if own + 1 < *count => Admission::InsteadOf(*origin),
        _ => Admission::Taken,
    }
}

/// The origin that has most of these, if one has more than one: then others need not give way. Of
/// many origins the first few are looked at, for this is asked often.
#[must_use]
pub fn crowd(there: impl Iterator<Item = SourceKey>) -> Option<SourceKey> {
    const FEW: usize = 16;
    let (origin, count) = count(there, FEW).into_iter().max_by_key(|(_, count)| *count)?;
    (count > 1).then_some(origin)
}

/// How many come from each of the first so many origins.
fn count(all: impl Iterator<Item = SourceKey>, most: usize) -> Vec<(SourceKey, usize)> {
    let mut counts: Vec<(SourceKey, usize)> = Vec::new();
    for origin in all {
        if let Some((_, count)) = counts.iter_mut().find(|(other, _)| *other == origin) {
            *count += 1;
        } else if counts.len() < most {
            counts.push((origin, 1));
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> SourceKey {
        address.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn an_origin_is_an_address_or_a_64() {
        assert_eq!(origin("10.0.0.1"), origin("::ffff:10.0.0.1"));
        assert_ne!(origin("10.0.0.1"), origin("10.0.0.2"));
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::2:0:0:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_ne!(origin("0.0.0.0"), origin("::"));
    }

    #[test]
    fn the_origin_with_most_loses_its_newest() {
        let (a, b, c) = (origin("10.0.0.1"), origin("10.0.0.2"), origin("::1"));
        for (waiting, newcomer, expected) in [
            (vec![], a, Admission::Free),
            (vec![a, a, a], a, Admission::Free),
            (vec![a, a, a, a], a, Admission::Taken),
            (vec![a, a, a, a], b, Admission::InsteadOf(a)),
            (vec![a, a, b, a], b, Admission::InsteadOf(a)),
            (vec![b, a, b, a], b, Admission::Taken),
            (vec![b, a, b, a], c, Admission::InsteadOf(a)),
            (vec![a, b, c, c], a, Admission::Taken),
            (vec![c, b, c, c], origin("2001:db8::1"), Admission::InsteadOf(c)),
            (vec![a, b, c, origin("10.9.9.9")], origin("2001:db8::1"), Admission::Taken),
        ] {
            assert_eq!(
                place(waiting.iter().copied(), newcomer, 4),
                expected,
                "{waiting:?} {newcomer:?}"
            );
        }
    }

    #[test]
    fn a_crowd_gives_way_before_who_is_alone() {
        let (a, b, c) = (origin("10.0.0.1"), origin("10.0.0.2"), origin("::1"));
        for (there, expected) in [
            (vec![], None),
            (vec![a, b, c], None),
            (vec![a, b, b, c], Some(b)),
            (vec![a, b, a, b, a, a, b], Some(a)),
        ] {
            assert_eq!(crowd(there.iter().copied()), expected, "{there:?}");
        }
        let many = (0..255).map(|n| origin(&format!("10.1.1.{n}")));
        assert_eq!(crowd(many.chain([a])), None);
    }
}
