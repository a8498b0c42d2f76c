//! A request to drain, as it travels from the hook to the sidecar: the query of `POST /drain`.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::os::clock::Timestamp;

use super::options::{DrainOption, Overrides};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainRequest {
    /// The options that the hook was given.
    pub overrides: Overrides,
    /// The reading of the monotonic clock after which no client waits for this drain.
    pub expires: Option<Timestamp>,
}

/// What a hook sends: its request, and what the sidecar logs for it, since a hook's own output is
/// lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookRequest {
    pub drain: DrainRequest,
    /// What is wrong with the hook's command line; empty if nothing is.
    pub error: String,
}

const ERROR: &str = "error";
const EXPIRES: &str = "expires";

/// The options of a drain, in bytes of the query.
const MAX_OPTIONS: usize = 12 * 1024;

/// What is wrong with the command line, in bytes before they are encoded.
const MAX_ERROR: usize = 1000;

/// The whole query, in bytes: each of the error's may become three, and the time has 20 digits.
pub const MAX_QUERY: usize = MAX_OPTIONS + 3 * MAX_ERROR + 64;

/// Everything but the unreserved characters of RFC 3986, section 2.3.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Drops the options that do not fit into a query beside the others. Returns a sentence that names
/// the first, if there is one.
pub fn drop_excess(overrides: &mut Overrides) -> Option<String> {
    let (mut length, mut first) = (0, None);
    overrides.retain(&mut |(option, value)| {
        let size = 1 + pair(option.name(), value).len();
        let fits = length + size <= MAX_OPTIONS;
        if fits {
            length += size;
        } else {
            first = first.or(Some(*option));
        }
        fits
    });
    let name = first?.name();
    Some(format!(
        "--{name}: beyond the {MAX_OPTIONS} bytes of options that a hook may have; give them to the \
         sidecar"
    ))
}

/// All sentences as one text that fits into a query.
pub fn join_errors(errors: &[String]) -> String {
    let mut text = errors.join("; ");
    text.truncate(text.floor_char_boundary(MAX_ERROR));
    text
}

fn pair(name: &str, value: &str) -> String {
    format!("{name}={}", utf8_percent_encode(value, ESCAPED))
}

impl HookRequest {
    /// The query of `POST /drain`, without its question mark.
    pub fn to_query(&self) -> String {
        let options = self.drain.overrides.pairs().iter();
        let mut pairs: Vec<String> =
            options.map(|(option, value)| pair(option.name(), value)).collect();
        if !self.error.is_empty() {
            pairs.push(pair(ERROR, &self.error));
        }
        let expires = self.drain.expires.map(|at| at.since_boot().as_nanos().to_string());
        pairs.extend(expires.map(|nanos| pair(EXPIRES, &nanos)));
        pairs.join("&")
    }

    /// Reads the query of `POST /drain`. Of a name that is there twice, the last one holds.
    ///
    /// # Errors
    /// A sentence that names what is wrong: an unknown name, a bad value.
    pub fn from_query(query: &str) -> Result<Self, String> {
        let mut request = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| format!("{pair:?} is not NAME=VALUE"))?;
            let value = percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| format!("the value of {name} is not UTF-8"))?;
            match name {
                EXPIRES => {
                    let nanos =
                        value.parse().map_err(|_| format!("expires={value} is not a time"))?;
                    let time = Timestamp::from_boot(Duration::from_nanos(nanos));
                    request.drain.expires = Some(time);
                }
                ERROR => request.error = value.into_owned(),
                _ => {
                    let option = DrainOption::from_name(name)
                        .ok_or_else(|| format!("a drain has no option {name:?}"))?;
                    let set = request.drain.overrides.set(option, &value);
                    set.map_err(|reason| format!("{name}: {reason}"))?;
                }
            }
        }
        Ok(request)
    }
}
