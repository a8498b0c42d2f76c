//! The query of `POST /drain`.
#![no_main]

use envoy_shutdown_manager::cli::drain_request::HookRequest;
use envoy_shutdown_manager::cli::options::Options;
use envoy_shutdown_manager_fuzz::{text, within};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(query) = text(input) else { return };
    // A sentence repeats what is wrong, where a control character becomes six.
    let Ok(request) = within(1024 + 20 * query.len(), || HookRequest::from_query(query)) else {
        return;
    };
    let written = request.to_query();
    assert!(written.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{written:?}");
    assert_eq!(HookRequest::from_query(&written).as_ref(), Ok(&request), "written as {written}");
    let settings = Options::default().with(&request.drain.overrides).settings();
    for (option, value) in request.drain.overrides.pairs() {
        assert!(settings.contains(&(option.name(), value.clone())), "{option:?} is not in force");
    }
});
