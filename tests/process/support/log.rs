//! Records of the log, parsed, and what a test expects of one.

use std::fmt::Display;

use serde_json::{Deserializer, Value};

/// A record as the program has written it: keys and values in their order, the message as `msg`.
#[derive(Clone, Debug)]
pub struct Record(Vec<(String, String)>);

impl Record {
    /// A line of either format; `None` if it is no record.
    pub fn parse(line: &str) -> Option<Self> {
        let record = if line.starts_with('{') { json(line)? } else { logfmt(line)? };
        record.get("msg").is_some().then_some(record)
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// An option that is given more than once has a field for each value.
    fn any(&self, key: &str, wanted: impl Fn(&str) -> bool) -> bool {
        self.0.iter().any(|(name, value)| name == key && wanted(value))
    }
}

fn json(line: &str) -> Option<Record> {
    let Value::Object(fields) = serde_json::from_str(line).ok()? else { return None };
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Some(Record(fields.into_iter().map(|(name, value)| (name, text(value))).collect()))
}

fn logfmt(mut rest: &str) -> Option<Record> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = if after.starts_with('"') {
            // A quoted value is a JSON string.
            let mut values = Deserializer::from_str(after).into_iter::<String>();
            let value = values.next()?.ok()?;
            (value, &after[values.byte_offset()..])
        } else {
            let end = after.find(' ').unwrap_or(after.len());
            (after[..end].to_owned(), &after[end..])
        };
        if name.is_empty() || name.contains([' ', '"']) {
            return None;
        }
        fields.push((name.to_owned(), value));
        rest = match after.strip_prefix(' ') {
            None if !after.is_empty() => return None,
            next => next.unwrap_or_default(),
        };
    }
    Some(Record(fields))
}

/// What a test expects of a record: its message, and some of its fields.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    equal: Vec<(String, String)>,
    parts: Vec<(String, String)>,
}

/// A record with this message.
pub fn logged(message: &str) -> Expected {
    Expected::default().with("msg", message)
}

impl From<&str> for Expected {
    fn from(message: &str) -> Self {
        logged(message)
    }
}

impl Expected {
    /// It also has this field.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Display) -> Self {
        self.equal.push((key.into(), value.to_string()));
        self
    }

    /// It also has this field, whose value contains this.
    #[must_use]
    pub fn containing(mut self, key: impl Into<String>, part: impl Display) -> Self {
        self.parts.push((key.into(), part.to_string()));
        self
    }

    pub fn matches(&self, record: &Record) -> bool {
        self.equal.iter().all(|(key, value)| record.any(key, |found| found == value))
            && self.parts.iter().all(|(key, part)| record.any(key, |found| found.contains(part)))
    }
}
