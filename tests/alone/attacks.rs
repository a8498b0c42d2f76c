//! The public port under attack: a prober, and a request that waits there for the end of a drain,
//! notice nothing. `ATTACK=full` takes minutes, anything else seconds.

mod cgroup;
mod hostile;
mod probe;
mod soak;
mod watched;

use std::thread;

use self::cgroup::Group;
use self::hostile::Target;
use self::watched::watch;

type Attack = fn(Target<'_>);

/// A test of each, and all of them together.
macro_rules! attacks {
    ($($name:ident: $attack:expr;)*) => {
        $(
            #[test]
            fn $name() {
                watch(stringify!($name), &["env"], $attack);
            }
        )*
        const ALL: &[Attack] = &[$($attack),*];
    };
}

attacks! {
    clients_that_send_nothing: hostile::silent;
    clients_that_send_a_byte_each_half_second: hostile::drip;
    clients_that_reset_their_connections: hostile::reset;
    clients_whose_requests_never_end: hostile::endless;
    clients_that_announce_bodies_and_upgrades: hostile::announce;
    clients_that_speak_other_protocols: hostile::other_protocols;
    clients_that_send_every_method_to_every_path: hostile::every_request;
    more_clients_that_wait_than_there_are_slots: hostile::wait;
    clients_that_wait_from_three_hundred_addresses: hostile::wait_from_many;
    clients_that_wait_and_disconnect: hostile::disconnect;
    clients_that_never_read_their_response: hostile::never_read;
}

/// All attacks at once, at their small size.
fn mixture(target: Target<'_>) {
    for _ in 0..if target.full { 10 } else { 1 } {
        let target = Target { full: false, ..target };
        thread::scope(|scope| {
            for attack in ALL {
                scope.spawn(move || attack(target));
            }
        });
    }
}

/// All of them, against a sidecar that this script starts.
fn all_behind(name: &str, script: &str) {
    watch(name, &["sh", "-c", script, "sh"], mixture);
}

#[test]
fn all_of_them_where_few_descriptors_can_be_had() {
    all_behind("128 descriptors", "ulimit -n 128; exec \"$@\"");
}

#[test]
fn all_of_them_where_next_to_no_descriptors_can_be_had() {
    all_behind("32 descriptors", "ulimit -n 32; exec \"$@\"");
}

/// What the manual asks for. All of them take up to 8.9 MB of the group, and version 1 of cgroups
/// counts up to 5.5 MB of socket buffers apart, which version 2 adds.
const MEMORY: u64 = 16 << 20;

#[test]
fn all_of_them_where_little_memory_can_be_had() {
    let group = match Group::new(MEMORY) {
        Ok(group) => group,
        Err(error) => return println!("SKIPPED: no memory cgroup can be made here: {error}"),
    };
    all_behind("16 MiB", &group.enter());
    let [peak, apart] = group.peak();
    println!("16 MiB: at most {peak} bytes of the group, and {apart} of sockets apart from it");
    assert!(peak > 0 && peak + apart <= MEMORY, "under version 2 of cgroups it would be killed");
    assert_eq!(group.kills(), 0, "the kernel has killed it");
}
