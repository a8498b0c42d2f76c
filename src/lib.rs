//! Drains Envoy before Kubernetes ends its pod: a sidecar that waits beside Envoy, and the preStop
//! hook that tells it to start.
//!
//! ```text
//!   the network                            the pod                           Envoy's container
//!
//!   kubelet: probe,                  exec hook, `status`
//!   Envoy's hook                            | hook
//!        |                                  |
//!        | public port                      | control_socket
//!        v                                  v
//!   +---------------- frontend ----------------+    untrusted input ends here
//!   |  admission, request -> route             |
//!   +--------------------+---------------------+
//!                        | a request in the frontend's own words
//!                        v
//!                     backend            tiny_http; alone holds the right to start a drain
//!                        |
//!                        v
//!   signals -->     coordinator          the shared state (Mutex, Condvar)
//!                     ^     |
//!              event  |     v  action
//!                     drain              the state machine: no I/O, no clock
//!                     ^     |
//!                     |     v
//!                     worker ----------> envoy  ------------------------>  admin interface
//!                        |
//!                        v
//!                     observe            log, status, metrics
//! ```
//!
//! Each module imports only from those behind it in this list:
//!
//! | module | what it is for |
//! |---|---|
//! | `main` | the life of the process |
//! | [`hook`] | the commands `shutdown` and `status`: clients of the control socket |
//! | [`frontend`] | holds every connection to the public port and to the control socket |
//! | [`backend`] | answers every route, by tiny_http |
//! | [`control_socket`] | where the private socket is, and how hook and sidecar find it |
//! | [`coordinator`] | shares the machine between worker, listeners and signals |
//! | [`observe`] | what is shown: log, status, metrics |
//! | [`route`] | every route and status code, once; none of the public ones can start a drain |
//! | [`drain`] | the drain as a pure state machine |
//! | [`envoy`] | Envoy's admin interface: the calls, the counting, the transport |
//! | [`cli`] | what is said on the command line, and the options of a drain |
//! | [`os`] | the clock, descriptors, threads, locks |
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
