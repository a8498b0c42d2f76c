//! How many connections each listener holds, and for how long clients may wait.

use std::time::Duration;

/// The connections of the public port. Each costs the process some 100 bytes and the kernel some
/// 4 kB.
const MAX_PUBLIC: usize = 1024;
const MIN_PUBLIC: usize = 4;

/// The connections of the control socket. The kubelet runs one hook, and the same hook again after
/// its own restart.
const MAX_CONTROL: usize = 192;
const MIN_CONTROL: usize = 6;

/// Descriptors reserved for all but the public port: half of them, at least what one drain needs, at
/// most what a full control socket and a drain need, with room to spare.
const MAX_RESERVED: usize = 448;
const MIN_RESERVED: usize = 28;

/// With fewer descriptors no drain is possible, though probes would get their responses.
pub const MIN_DESCRIPTORS: usize = MIN_PUBLIC + MIN_RESERVED;

/// How long Envoy's own hook may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a drain to start: `--start-timeout`.
    pub start: Duration,
    /// In all: `--ready-timeout`.
    pub ready: Option<Duration>,
}

/// The limits of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub(super) max_connections: usize,
    /// Of these, the slots for clients that wait for a drain.
    pub(super) max_waiting: usize,
}

impl Limits {
    /// For the public port of a process that may have this many descriptors.
    pub fn public(descriptors: usize) -> Self {
        let left = descriptors.saturating_sub(reserved(descriptors));
        let max_connections = left.clamp(MIN_PUBLIC, MAX_PUBLIC);
        // The other half is for all other requests.
        Self { max_connections, max_waiting: max_connections / 2 }
    }

    /// For its control socket.
    pub fn control(descriptors: usize) -> Self {
        // In proportion, between the fewest that are reserved and the most.
        let left = reserved(descriptors).saturating_sub(MIN_RESERVED);
        let share = left * MAX_CONTROL / (MAX_RESERVED - MIN_RESERVED);
        let max_connections = share.clamp(MIN_CONTROL, MAX_CONTROL);
        // A third for Envoy's hooks, a third for exec hooks, and the rest for all other requests.
        Self { max_connections, max_waiting: max_connections / 3 }
    }
}

fn reserved(descriptors: usize) -> usize {
    (descriptors / 2).clamp(MIN_RESERVED, MAX_RESERVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_from_the_number_of_descriptors() {
        for (descriptors, public, control) in [
            (0, (4, 2), (6, 2)),
            (32, (4, 2), (6, 2)),
            (64, (32, 16), (6, 2)),
            (128, (64, 32), (16, 5)),
            (1024, (576, 288), (192, 64)),
            (1471, (1023, 511), (192, 64)),
            (1472, (1024, 512), (192, 64)),
            (usize::MAX, (1024, 512), (192, 64)),
        ] {
            let limits = |(max_connections, max_waiting)| Limits { max_connections, max_waiting };
            assert_eq!(Limits::public(descriptors), limits(public), "{descriptors}");
            assert_eq!(Limits::control(descriptors), limits(control), "{descriptors}");
        }
    }
}
