//! Writing JSON (RFC 8259): objects of a few fields, for the log and the status page.

use std::fmt::Write as _;
use std::time::Duration;

/// The value of a field.
#[derive(Debug, PartialEq, Eq)]
pub enum Value {
    /// There is none: null, and no field in the log.
    None,
    Text(String),
    Number(u64),
    /// In seconds, with three decimals.
    Time(Duration),
    /// Of one, with three decimals too.
    Thousandths(u64),
    /// JSON already.
    Json(String),
}

impl Value {
    pub fn json(&self) -> String {
        let mut out = String::new();
        match self {
            Self::None => out.push_str("null"),
            Self::Text(text) => quote(&mut out, text),
            Self::Number(number) => out = number.to_string(),
            Self::Time(time) => out = seconds(*time),
            Self::Thousandths(number) => out = thousandths(*number),
            Self::Json(json) => out.clone_from(json),
        }
        out
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, T::into)
    }
}

macro_rules! values {
    ($($From:ty => $to:expr,)+) => {
        $(impl From<$From> for Value {
            fn from(value: $From) -> Self {
                $to(value)
            }
        })+
    };
}

values! {
    &str => |text: &str| Self::Text(text.to_owned()),
    String => Self::Text,
    u64 => Self::Number,
    Duration => Self::Time,
}

/// An object under construction.
#[derive(Default)]
pub struct Object(String);

impl Object {
    /// The object with one more field.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.push(name, &value.into());
        self
    }

    pub fn push(&mut self, name: &str, value: &Value) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        quote(&mut self.0, name);
        self.0.push(':');
        self.0.push_str(&value.json());
    }

    pub fn end(self) -> String {
        if self.0.is_empty() { "{}".to_owned() } else { self.0 + "}" }
    }
}

/// An array of values that are JSON already.
pub fn array(values: impl Iterator<Item = String>) -> String {
    format!("[{}]", values.collect::<Vec<_>>().join(","))
}

/// A time in seconds, with three decimals.
pub fn seconds(time: Duration) -> String {
    thousandths(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// A number of thousandths, with three decimals.
pub fn thousandths(number: u64) -> String {
    format!("{}.{:03}", number / 1000, number % 1000)
}

/// Whether a character shows as nothing but changes how others show, which forges a line: controls, the
/// ends of lines and paragraphs, marks of direction (Unicode TR 36, 3.4).
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Appends a quoted string.
pub fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c => push_seen(out, c),
        }
    }
    out.push('"');
}

/// A text of one line for people: what cannot be seen is escaped.
pub fn seen(text: &str) -> String {
    let mut out = String::new();
    text.chars().for_each(|c| push_seen(&mut out, c));
    out
}

fn push_seen(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if is_unseen(c) => {
            // Writing to a String does not fail. These are all in the first plane.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        }
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_written_with_their_fields_in_order() {
        assert_eq!(Object::default().end(), "{}");
        let object = Object::default()
            .with("a", "b")
            .with("n", 3)
            .with("none", None::<u64>)
            .with("o", None::<&str>)
            .with("p", Some("q"))
            .with("r", Value::Json("[1]".to_owned()))
            .with("t", Duration::from_millis(61_007));
        assert_eq!(
            object.end(),
            r#"{"a":"b","n":3,"none":null,"o":null,"p":"q","r":[1],"t":61.007}"#
        );
    }

    #[test]
    fn strings_are_escaped() {
        let mut out = String::new();
        quote(&mut out, "a\"b\\c\nd\re\tf\0g\u{7f}\u{9f}\u{fc}\u{1f980}/");
        assert_eq!(out, "\"a\\\"b\\\\c\\nd\\re\\tf\\u0000g\\u007f\\u009f\u{fc}\u{1f980}/\"");
    }

    #[test]
    fn what_changes_how_others_show_is_unseen() {
        for c in [
            '\u{1b}', '\u{61c}', '\u{200b}', '\u{200f}', '\u{2028}', '\u{202e}', '\u{2060}',
            '\u{2066}', '\u{2069}', '\u{206f}', '\u{feff}',
        ] {
            assert!(is_unseen(c), "{} can forge a line", c.escape_unicode());
        }
        for c in [' ', 'a', '\u{fc}', '\u{2010}', '\u{202f}', '\u{2070}', '\u{1f980}'] {
            assert!(!is_unseen(c), "{} is escaped", c.escape_unicode());
        }
    }
}
