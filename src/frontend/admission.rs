//! Which connections are kept when more come than fit. Connections go in as entries, decisions come
//! out; no socket is touched here.
//!
//! The client that matters is the kubelet. So that no other client can take its place by connecting
//! often, the source that holds most is the first to lose a connection.

use std::net::IpAddr;

/// The key of a connection: it is never used again, and older connections have smaller ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Clients that are counted as one: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceKey(u64);

impl SourceKey {
    /// Every client of the control socket.
    pub const LOCAL: Self = Self(0);
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

/// Whether a client may wait for a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Admit,
    /// In place of this waiter.
    Evict(ConnectionId),
    Reject,
}

/// A client that waits for a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub id: ConnectionId,
    pub source: SourceKey,
    /// It came about when the drain started, as Envoy's own hook does.
    pub is_paired: bool,
}

/// Decides about a `newcomer` where `max` may wait and these do, oldest first. When all slots are
/// taken, the source with most waiters loses its newest, so a source without a waiter gets a slot
/// while there are fewer sources than slots. One that is paired goes last: on the host's network others
/// share the kubelet's address.
pub fn admit(waiting: &[Waiter], newcomer: SourceKey, max: usize) -> Admission {
    if waiting.len() < max {
        return Admission::Admit;
    }
    let counts = count_sources(&mut waiting.iter().map(|waiter| waiter.source), max);
    let own = counts.iter().find(|c| c.source == newcomer).map_or(0, |own| own.count);
    let largest = largest(&counts).filter(|c| own + 1 < c.count).map(|c| c.source);
    let of_largest = waiting.iter().filter(|waiter| Some(waiter.source) == largest);
    let evicted = of_largest.max_by_key(|waiter| (!waiter.is_paired, waiter.id));
    evicted.map_or(Admission::Reject, |waiter| Admission::Evict(waiter.id))
}

/// A full frontend accepts this part of its limit at once before it closes as many connections:
/// each time costs a pass over all connections, and where that takes long, a burst fills the
/// backlog, so that the kernel drops the next client, which tries again after a second.
const BATCHES: usize = 16;

/// How many connections may be accepted now where `held` are held, of `max`, and `evictable` of
/// these are not waiting: as many as fit, and a batch in place of evictable ones. Where all wait,
/// most for less than a millisecond, newcomers wait in the backlog. While some wait that briefly
/// (`brief`), the last evictable one is kept.
pub fn acceptable(held: usize, evictable: usize, brief: bool, max: usize) -> usize {
    let batch = (max / BATCHES).max(1);
    let evictable = evictable.saturating_sub(usize::from(brief));
    (max.saturating_sub(held) + evictable).min((max + batch).saturating_sub(held))
}

/// The order in which connections are closed when more are held than fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EvictionRank {
    /// No complete request has arrived.
    NoRequest,
    /// The response is sent; what the client still sends is discarded.
    Responded,
    /// The connection has just been accepted, or its response is being sent.
    InProgress,
    /// The client waits for a response; it is never evicted.
    Waiting,
}

/// A connection, as far as evictions depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: ConnectionId,
    pub source: SourceKey,
    pub rank: EvictionRank,
}

/// Chooses whom to evict among connections, oldest first, of which `excess` are too many: returns
/// the candidates, and how many of them to close. They are the largest source's, of its lowest
/// rank. Connections accepted in this round, which have a greater id than `last`, come after all
/// others, so a client has time between its connect and its request, however often others connect.
/// Only half of a rank is closed before the next choice: another source may be the largest by then.
pub fn next_evictions(
    mut entries: Vec<Entry>,
    last: ConnectionId,
    excess: usize,
) -> (Vec<Entry>, usize) {
    let waits = |entry: &Entry| entry.rank == EvictionRank::Waiting;
    let counted = entries.iter().filter(|entry| entry.id > last || !waits(entry));
    let largest = largest_source(&mut counted.map(|entry| entry.source));
    entries.retain(|entry| !waits(entry));
    if let Some(largest) = largest
        && entries.iter().any(|entry| entry.source == largest)
    {
        entries.retain(|entry| entry.source == largest);
    }
    let order = |entry: &Entry| (entry.id > last, entry.rank);
    let first = entries.iter().map(order).min();
    entries.retain(|entry| Some(order(entry)) == first);
    let count = excess.min(entries.len().div_ceil(2));
    (entries, count)
}

/// The source with most of these, if it has more than one: then the others lose nothing. Only the
/// first few of many sources are counted, since this runs often.
fn largest_source(sources: &mut dyn Iterator<Item = SourceKey>) -> Option<SourceKey> {
    const MAX_COUNTED: usize = 16;
    let counts = count_sources(sources, MAX_COUNTED);
    largest(&counts).filter(|c| c.count > 1).map(|c| c.source)
}

/// How many come from one source, which is the `position`th that was seen.
struct SourceCount {
    source: SourceKey,
    count: usize,
    position: usize,
}

/// The largest; of equal ones, the one that was seen last.
fn largest(counts: &[SourceCount]) -> Option<&SourceCount> {
    counts.iter().max_by_key(|c| (c.count, c.position))
}

/// Counts the first `max` sources; ordered by source, since there may be hundreds.
fn count_sources(sources: &mut dyn Iterator<Item = SourceKey>, max: usize) -> Vec<SourceCount> {
    let mut counts: Vec<SourceCount> = Vec::new();
    for source in sources {
        let position = counts.len();
        match counts.binary_search_by_key(&source, |c| c.source) {
            Ok(index) => counts[index].count += 1,
            Err(index) if position < max => {
                counts.insert(index, SourceCount { source, count: 1, position });
            }
            Err(_) => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests;
