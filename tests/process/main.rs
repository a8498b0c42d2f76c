//! Process-level tests: the built program against a real Envoy and against a scripted one.

mod support;
mod support_works;
