//! Drains Envoy before Kubernetes ends its pod: a sidecar that waits beside Envoy, and the preStop
//! hook that tells it to start.
//!
//! ```text
//!   the network                          the pod
//!
//!   kubelet: probes,              exec hook, `status`, `restore`, `release`
//!   Envoy's hook                        | hook
//!        | public port                  | control_socket
//!        v                              v
//!   +----------------- frontend -----------------+   untrusted input ends here, and clients wait
//!   |  request -> route -> admission -> upstream |   here; requests in its own words go on
//!   +-----------------------+--------------------+
//!              ^            v one stream
//!              |         backend                   tiny_http; alone starts and ends drains for clients
//!              |            v
//!   signals ---|--> coordinator <-----> drain      the state machine: no I/O, no clock
//!              +-------+ wakes
//!                     |       |     event, action
//!              worker |       | records, counters
//!                     v       v
//!                  envoy    observe -------------> log on stdout; status and metrics,
//!                     |                            which the backend serves
//!                     v
//!          Envoy's admin interface
//! ```
//!
//! Each module imports only from those behind it in this list:
//!
//! | module | what it is for |
//! |---|---|
//! | `main` | the life of the process |
//! | [`hook`] | the commands `shutdown`, `status`, `restore` and `release`: clients of the control socket |
//! | [`frontend`] | holds every connection to the public port and to the control socket |
//! | [`backend`] | responds to every route, by tiny_http |
//! | [`control_socket`] | the socket between hook and sidecar: where it is, how each finds it |
//! | [`coordinator`] | shares the machine between worker, listeners and signals |
//! | [`observe`] | what is shown: log, status, metrics |
//! | [`route`] | every route and status code, once; none of the public ones can start a drain |
//! | [`drain`] | the drain as a pure state machine |
//! | [`envoy`] | Envoy's admin interface: the calls, the counting, the transport |
//! | [`cli`] | the command line, and the options of a drain |
//! | [`os`] | the clock, descriptors, threads, signals, locks |
//!
//! `cli`, `drain`, `route`, `envoy::stats`, `frontend::admission`, `frontend::request` and what
//! `observe` renders are pure: no I/O, no clock. The [`manual`] has the facts behind the design.

pub mod backend;
pub mod cli;
pub mod control_socket;
pub mod coordinator;
pub mod drain;
pub mod envoy;
pub mod frontend;
pub mod hook;
pub mod manual;
pub mod observe;
pub mod os;
pub mod route;
