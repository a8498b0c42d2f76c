//! The gauges of all listeners, without the names of the workers' copies: 300 listeners on 64
//! workers have 300 entries here, not 19,500.
//!
//! Envoy renders names in their order, a listener's like this; only the copies have no `pre_cx`:
//!
//! ```text
//! listener.0.0.0.0_8080.downstream_cx_active: 3
//! listener.0.0.0.0_8080.downstream_pre_cx_active: 0
//! listener.0.0.0.0_8080.worker_0.downstream_cx_active: 1
//! listener.0.0.0.0_8080.worker_1.downstream_cx_active: 2
//! ```
//!
//! A name that ends like a copy's is therefore a listener of its own if the next line is its
//! `pre_cx`. In no order is a connection lost: see [`ListenerGauges::finish`].

use std::collections::BinaryHeap;

use super::Exclusions;

/// What the gauges under one name say. Ordered by that name.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    pub name: Box<[u8]>,
    /// None where it has no such gauge, but only copies of it.
    pub cx: Option<u64>,
    /// Clients that have sent nothing yet.
    pub pre_cx: Option<u64>,
    /// `cx` once more, as the sum of what each thread has.
    pub of_threads: u64,
    /// The part of it whose names are excluded, in case these are listeners of their own.
    pub of_excluded_threads: u64,
}

impl Listener {
    /// Whether its threads' gauges are copies of its own. Without a listener they are not: then each
    /// is a listener of its name. The admin interface's own gauge is not here.
    pub fn has_copies(&self) -> bool {
        self.cx.is_some() || self.pre_cx.is_some() || *self.name == *b"admin"
    }

    /// Its connections, without those of silent clients. Envoy does not read its gauges in one
    /// instant. It reads `cx`, then `pre_cx`, then the threads' copies, so a client that sends its
    /// first byte in between is missing from the first two (measured: once in a million polls), and
    /// found in the third.
    pub fn connections(&self) -> u64 {
        self.cx.unwrap_or(0).max(self.of_threads)
    }
}

/// Adds the gauges of listeners up, line by line.
pub struct ListenerGauges<'a> {
    exclusions: Exclusions<'a>,
    /// In the order in which they came, with a name once more where others were between.
    listeners: Vec<Listener>,
    /// The last gauge, if its name ends like that of a thread's copy and the next line tells which it
    /// is.
    pending: Option<u64>,
    pending_name: Vec<u8>,
}

impl<'a> ListenerGauges<'a> {
    pub fn new(exclusions: Exclusions<'a>) -> Self {
        Self { exclusions, listeners: Vec::new(), pending: None, pending_name: Vec::new() }
    }

    /// `downstream_cx_active` of a listener, or of a thread.
    pub fn add_cx(&mut self, name: &[u8], value: u64) {
        self.settle();
        let is_last = self.listeners.last().is_some_and(|listener| *listener.name == *name);
        if !is_last && thread_parent(name).is_some() {
            self.pending = Some(value);
            self.pending_name.clear();
            self.pending_name.extend_from_slice(name);
        } else {
            add(&mut self.listener(name).cx, value);
        }
    }

    /// `downstream_pre_cx_active` of a listener.
    pub fn add_pre_cx(&mut self, name: &[u8], value: u64) {
        let cx = if self.pending_name == name { self.pending.take() } else { None };
        self.settle();
        let listener = self.listener(name);
        if let Some(cx) = cx {
            add(&mut listener.cx, cx);
        }
        add(&mut listener.pre_cx, value);
    }

    /// The pending gauge is a thread's copy.
    fn settle(&mut self) {
        let Some(cx) = self.pending.take() else { return };
        let name = std::mem::take(&mut self.pending_name);
        let is_excluded = self.exclusions.excludes(&name);
        let listener = self.listener(thread_parent(&name).unwrap_or(&name));
        listener.of_threads = listener.of_threads.saturating_add(cx);
        if is_excluded {
            listener.of_excluded_threads = listener.of_excluded_threads.saturating_add(cx);
        }
        self.pending_name = name;
    }

    fn listener(&mut self, name: &[u8]) -> &mut Listener {
        if self.listeners.last().is_none_or(|listener| *listener.name != *name) {
            self.listeners.push(Listener {
                name: name.into(),
                cx: None,
                pre_cx: None,
                of_threads: 0,
                of_excluded_threads: 0,
            });
        }
        let index = self.listeners.len() - 1;
        &mut self.listeners[index]
    }

    /// All listeners in the order of their names, and whether the lines were in an order that hides
    /// which gauges are copies, so that each must be taken for a listener of its own.
    pub fn finish(mut self) -> (Vec<Listener>, bool) {
        self.settle();
        // A heap, since `sort_unstable` is 4 kB of the program.
        let mut listeners = BinaryHeap::from(self.listeners).into_sorted_vec();
        listeners.dedup_by(|next, listener| {
            let is_same = next.name == listener.name;
            if is_same {
                for (sum, part) in
                    [(&mut listener.cx, next.cx), (&mut listener.pre_cx, next.pre_cx)]
                {
                    if let Some(part) = part {
                        add(sum, part);
                    }
                }
                listener.of_threads = listener.of_threads.saturating_add(next.of_threads);
                listener.of_excluded_threads =
                    listener.of_excluded_threads.saturating_add(next.of_excluded_threads);
            }
            is_same
        });
        // Its cx was not in the line before its pre_cx, so it was taken for a copy.
        let is_unclear = listeners.iter().any(|listener| {
            listener.cx.is_none()
                && listener.pre_cx.is_some()
                && thread_parent(&listener.name).is_some()
        });
        (listeners, is_unclear)
    }
}

fn add(sum: &mut Option<u64>, value: u64) {
    *sum = Some(sum.unwrap_or(0).saturating_add(value));
}

/// The listener of which this gauge may be a thread's copy: `NAME.worker_0`, `NAME.main_thread`.
pub fn thread_parent(gauge: &[u8]) -> Option<&[u8]> {
    let dot = gauge.iter().rposition(|byte| *byte == b'.')?;
    let (listener, thread) = (&gauge[..dot], &gauge[dot + 1..]);
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let is_thread =
        thread == b"main_thread" || thread.strip_prefix(b"worker_").is_some_and(is_number);
    is_thread.then_some(listener)
}

#[cfg(test)]
mod tests;
