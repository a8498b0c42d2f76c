//! The public port under attack: whoever probes it, and who waits there for the end of a drain,
//! notices nothing. `ATTACK=full` takes minutes, anything else seconds.

#![allow(clippy::expect_used, reason = "a step that fails is a test that fails")]

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
    clients_that_say_nothing: hostile::silent;
    clients_that_say_a_byte_each_half_second: hostile::drip;
    clients_that_reset_their_connections: hostile::reset;
    clients_that_never_come_to_an_end: hostile::never_end;
    clients_that_announce_what_is_not_served: hostile::announce;
    clients_that_speak_other_protocols: hostile::speak_others;
    clients_that_ask_for_everything: hostile::ask_all;
    clients_that_wait_in_a_crowd: hostile::wait;
    clients_that_wait_at_three_hundred_addresses: hostile::wait_apart;
    clients_that_ask_to_wait_and_hang_up: hostile::hang_up;
    clients_that_never_read_their_answer: hostile::never_read;
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

/// All of them, at a sidecar that this script starts.
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

#[test]
fn all_of_them_where_little_memory_can_be_had() {
    let group = match Group::new(8 << 20) {
        Ok(group) => group,
        Err(error) => return println!("SKIPPED: no memory cgroup can be made here: {error}"),
    };
    all_behind("8 MiB", &group.enter());
    println!("8 MiB: at most {:?} bytes of the group, and of its sockets", group.peak());
    assert_eq!(group.kills(), 0, "the kernel has killed it");
}
