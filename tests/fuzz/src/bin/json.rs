//! A name and a text, a line each, as a field of the log.
#![no_main]

use envoy_shutdown_manager::observe::json::Object;
use envoy_shutdown_manager_fuzz::{text, within};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|input: &[u8]| {
    let Some(text) = text(input) else { return };
    let (name, value) = text.split_once('\n').unwrap_or((text, ""));
    // A control character becomes six, in a string that is copied when it doubles.
    let written = within(256 + 24 * text.len(), || {
        Object::default().with(name, value).with("n", 1).with("o", None::<u64>).end()
    });
    assert!(!written.contains(char::is_control), "{written:?} is not one line");
    let mut expected = json!({ name: value });
    // Of a name that is there twice, the last one holds.
    expected["n"] = json!(1);
    expected["o"] = Value::Null;
    assert_eq!(serde_json::from_str::<Value>(&written).ok(), Some(expected), "{written}");
});
