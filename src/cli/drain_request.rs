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

const EXPIRES: &str = "expires";

/// Everything but the unreserved characters of RFC 3986, section 2.3.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl DrainRequest {
    /// The query of `POST /drain`, without its question mark.
    pub fn to_query(&self) -> String {
        let pair = |name, value: &str| format!("{name}={}", utf8_percent_encode(value, ESCAPED));
        let options = self.overrides.pairs().iter();
        let mut pairs: Vec<String> =
            options.map(|(option, value)| pair(option.name(), value)).collect();
        let expires = self.expires.map(|at| at.since_boot().as_nanos().to_string());
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
            if name == EXPIRES {
                let nanos = value.parse().map_err(|_| format!("expires={value} is not a time"))?;
                request.expires = Some(Timestamp::from_boot(Duration::from_nanos(nanos)));
                continue;
            }
            let option = DrainOption::from_name(name)
                .ok_or_else(|| format!("a drain has no option {name:?}"))?;
            request.overrides.set(option, &value).map_err(|reason| format!("{name}: {reason}"))?;
        }
        Ok(request)
    }
}
