//! Drains Envoy before Kubernetes ends its pod: a sidecar that waits beside Envoy, and the preStop
//! hook that tells it to begin.
//!
//! What each module is for, and how a drain goes through them:
//!
//! | | |
//! |---|---|
//! | what is said | [`cli`] reads arguments; [`options`], [`address`] and [`duration`] are what they say |
//! | the hook | [`hook`] finds the sidecar ([`socket`]) and asks it to drain |
//! | the sidecar's doors | [`front`], twice: the public port ([`port`]) and the control socket, where [`head`] is read and [`control::private`] or [`head::public`] decides what is served |
//! | behind them | [`control`], the server that both ask, which alone holds a [`manager::Control`] |
//! | the sidecar's mind | [`manager`] shares the state of [`drain`], a pure machine, with a worker |
//! | the sidecar's hand | [`envoy`] asks Envoy ([`transport`]: over Unix and TCP sockets), [`count`] adds up what it answers, [`fault`] is what can go wrong |
//! | what is told | [`story`] words a step for the log ([`logger`]), [`page`] the state for status and metrics |
//! | below | [`clock`], [`json`], [`slot`], [`supervisor`], [`sync`] |
//!
//! `address`, `cli`, `count`, `drain`, `duration`, `fault`, `head`, `json`, `options`, `page` and
//! `story` are pure: no I/O, no clock.

pub mod address;
pub mod cli;
pub mod clock;
pub mod control;
pub mod count;
pub mod drain;
pub mod duration;
pub mod envoy;
pub mod fault;
pub mod front;
pub mod head;
pub mod hook;
pub mod json;
pub mod logger;
pub mod manager;
pub mod manual;
pub mod options;
pub mod page;
pub mod port;
pub mod slot;
pub mod socket;
pub mod story;
pub mod supervisor;
pub mod sync;
pub mod transport;
