//! Writing JSON (RFC 8259): objects of a few fields, for the log and the status page.

use std::fmt::Write as _;
use std::time::Duration;

/// An object under construction.
#[derive(Debug)]
pub struct Object(String);

impl Object {
    /// An object without fields.
    pub fn new() -> Self {
        Self("{".to_owned())
    }

    /// Adds a field whose value is JSON already.
    pub fn raw(mut self, name: &str, value: &str) -> Self {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        quote(&mut self.0, name);
        self.0.push(':');
        self.0.push_str(value);
        self
    }

    /// Adds a string.
    pub fn text(self, name: &str, value: &str) -> Self {
        let mut quoted = String::new();
        quote(&mut quoted, value);
        self.raw(name, &quoted)
    }

    /// Adds a number, or null.
    pub fn number(self, name: &str, value: Option<u64>) -> Self {
        self.raw(name, &value.map_or_else(|| "null".to_owned(), |value| value.to_string()))
    }

    /// Adds a string, or null.
    pub fn optional(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self.raw(name, "null"),
        }
    }

    /// The object.
    pub fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

impl Default for Object {
    fn default() -> Self {
        Self::new()
    }
}

/// A time in seconds, with three decimals.
pub fn seconds(time: Duration) -> String {
    format!("{}.{:03}", time.as_secs(), time.subsec_millis())
}

/// Appends a quoted string.
pub fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a String does not fail. Control characters are all in the first plane.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_written_with_their_fields_in_order() {
        assert_eq!(Object::new().end(), "{}");
        let object = Object::new()
            .text("a", "b")
            .number("n", Some(3))
            .number("none", None)
            .optional("o", None)
            .optional("p", Some("q"))
            .raw("r", "[1]");
        assert_eq!(object.end(), r#"{"a":"b","n":3,"none":null,"o":null,"p":"q","r":[1]}"#);
    }

    #[test]
    fn strings_are_escaped() {
        let mut out = String::new();
        quote(&mut out, "a\"b\\c\nd\re\tf\0g\u{7f}\u{9f}\u{fc}\u{1f980}/");
        assert_eq!(out, "\"a\\\"b\\\\c\\nd\\re\\tf\\u0000g\\u007f\\u009f\u{fc}\u{1f980}/\"");
    }
}
