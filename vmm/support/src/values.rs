//! Parses the values of flags: numbers and lists of keys, with their error messages.
//!
//! A message names the wrong part and what was expected. It does not repeat the whole value: the
//! caller shows that.

use std::fmt;
use std::ops::RangeInclusive;

/// The unit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number of things, named by the text.
    Count(&'static str),
    /// Time in milliseconds.
    Milliseconds,
    /// Time in seconds.
    Seconds,
    /// Memory in MiB.
    Mebibytes,
}

/// A unit that people write, and its size in our unit: a numerator and a denominator.
type Scale = (&'static str, u64, u64);

const TIMES: &[Scale] = &[("ms", 1, 1), ("us", 1, 1000), ("min", 60_000, 1), ("s", 1000, 1)];
const LONG_TIMES: &[Scale] = &[("ms", 1, 1000), ("min", 60, 1), ("h", 3600, 1), ("s", 1, 1)];
const SIZES: &[Scale] = &[("k", 1, 1024), ("m", 1, 1), ("g", 1024, 1), ("t", 1 << 20, 1)];

impl Unit {
    fn scales(self) -> &'static [Scale] {
        match self {
            Self::Count(_) => &[],
            Self::Milliseconds => TIMES,
            Self::Seconds => LONG_TIMES,
            Self::Mebibytes => SIZES,
        }
    }

    /// The value of `text` in this unit; `None` if `text` has no unit of its own.
    fn convert(self, text: &str) -> Option<u64> {
        let text = text.trim().to_ascii_lowercase();
        let text = match self {
            Self::Mebibytes => text.trim_end_matches("ib").trim_end_matches('b'),
            _ => text.as_str(),
        };
        self.scales().iter().find_map(|(suffix, times, per)| {
            let number: u64 = text.strip_suffix(suffix)?.trim().parse().ok()?;
            number.checked_mul(*times).map(|number| number / per)
        })
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(what) => f.write_str(what),
            Self::Milliseconds => f.write_str("milliseconds"),
            Self::Seconds => f.write_str("seconds"),
            Self::Mebibytes => f.write_str("MiB"),
        }
    }
}

/// Parses a number, which consists of digits only.
///
/// # Errors
/// When `text` is not a number in the range. The message says what was expected, and suggests a
/// number if `text` has a unit.
pub fn number(text: &str, range: &RangeInclusive<u64>, unit: Unit) -> Result<u64, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(number) = text.parse().ok().filter(|number| digits && range.contains(number)) {
        return Ok(number);
    }
    let (least, most) = (range.start(), range.end());
    let plain = if digits || unit.scales().is_empty() { "" } else { ", without a unit" };
    let meant = unit.convert(text).filter(|number| range.contains(number));
    let meant = meant.map(|number| format!(", for instance {number}")).unwrap_or_default();
    Err(format!("expected {unit}{plain}{meant} ({least} to {most})"))
}

/// A function that parses a flag's value as [`number`] does.
///
/// # Errors
/// In the parser, as for [`number`].
pub fn numbers<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
    unit: Unit,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let read = number(text, &range, unit)?;
        T::try_from(read).map_err(|_| format!("expected {unit} up to {}", range.end()))
    }
}

/// Checks `HOST:PORT`. An IPv6 address must be in brackets.
///
/// # Errors
/// When the address is wrong; the message says how.
pub fn address(text: &str) -> Result<(), String> {
    const FORM: &str = "expected HOST:PORT";
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!("{FORM}, found no `:` and port in `{text}`"));
    };
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(ip) if ip.parse::<std::net::Ipv6Addr>().is_err() => {
            return Err(format!("{FORM}, found `{host}`, which is not an IPv6 address"));
        }
        None if text.parse::<std::net::Ipv6Addr>().is_ok() || host.contains(':') => {
            return Err(format!(
                "{FORM} with an IPv6 address in brackets, for instance [::1]:7000, found `{text}`"
            ));
        }
        // Four numbers are not a host name.
        None if host.split('.').count() == 4
            && host.bytes().all(|byte| byte == b'.' || byte.is_ascii_digit())
            && host.parse::<std::net::Ipv4Addr>().is_err() =>
        {
            return Err(format!("{FORM}, found `{host}`, which is not an IPv4 address"));
        }
        None if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/') => {
            return Err(format!("{FORM}, found no name or address of a host in `{text}`"));
        }
        _ => {}
    }
    let range = 1..=u64::from(u16::MAX);
    number(port, &range, Unit::Count("a port"))
        .map(drop)
        .map_err(|error| format!("`{text}`: {error}"))
}

/// One part of a list: `KEY=VALUE`, or a word alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The key, or the word.
    pub key: String,
    /// The text after the `=`, if there is one.
    pub value: Option<String>,
}

impl Part {
    /// The error message for this part.
    #[must_use]
    pub fn wrong(&self, expected: &str) -> String {
        format!("`{self}`: expected {expected}")
    }

    /// Parses `on` or `off`.
    ///
    /// # Errors
    /// When the value is neither.
    pub fn switch(&self) -> Result<bool, String> {
        match self.value.as_deref() {
            Some("on") => Ok(true),
            Some("off") => Ok(false),
            _ => Err(self.wrong(&format!("{0}=on or {0}=off", self.key))),
        }
    }

    /// Parses a number.
    ///
    /// # Errors
    /// When the value is no number, or out of range.
    pub fn number(&self, range: RangeInclusive<u64>, unit: Unit) -> Result<u64, String> {
        let value = self.value.as_deref().unwrap_or_default();
        number(value, &range, unit).map_err(|error| format!("`{self}`: {error}"))
    }

    /// The value, which must not be empty.
    ///
    /// # Errors
    /// When the value is empty.
    pub fn text(&self) -> Result<&str, String> {
        let value = self.value.as_deref().filter(|value| !value.is_empty());
        value.ok_or_else(|| self.wrong(&format!("{}=VALUE, found no value", self.key)))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => f.write_str(&self.key),
        }
    }
}

/// Splits `a=b,c=d`. A comma in a value is written twice.
///
/// # Errors
/// When a part is empty or a key is given twice. `form` is the expected form of the list, for the
/// message.
pub fn list(text: &str, form: &str) -> Result<Vec<Part>, String> {
    let mut parts: Vec<Part> = Vec::new();
    for text in split(text) {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (text, None),
        };
        if key.is_empty() {
            return Err(format!("expected {form}; found nothing where a key is expected"));
        }
        if parts.iter().any(|part| part.key == key) {
            return Err(format!("`{key}` is given twice: expected each key once"));
        }
        parts.push(Part { key, value });
    }
    Ok(parts)
}

/// The error message for an unknown key.
#[must_use]
pub fn unknown(part: &Part, form: &str) -> String {
    let comma = if part.value.is_none() { "; write a comma in a path twice" } else { "" };
    format!("`{part}`: no such key; expected {form}{comma}")
}

fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        if next == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(next);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn numbers_are_digits_and_others_are_converted_for_the_reader() {
        assert_eq!(number("64", &(2..=100), Unit::Mebibytes), Ok(64));
        for (text, unit, meant) in [
            ("1G", Unit::Mebibytes, "for instance 1024"),
            ("2GiB", Unit::Mebibytes, "for instance 2048"),
            ("512 mb", Unit::Mebibytes, "for instance 512"),
            ("2s", Unit::Milliseconds, "for instance 2000"),
            ("500ms", Unit::Milliseconds, "for instance 500"),
            ("", Unit::Milliseconds, "milliseconds, without a unit"),
        ] {
            let error = number(text, &(1..=10_000), unit).unwrap_err();
            assert!(error.contains(meant) && error.contains("1 to 10000"), "{text}: {error}");
        }
        for text in ["+5", "-5", "0x10", " 5", "5 ", "5.0", "1e3", "99999999999999999999", "0"] {
            let error = number(text, &(1..=10_000), Unit::Count("vCPUs")).unwrap_err();
            assert_eq!(error, "expected vCPUs (1 to 10000)", "{text}");
        }
    }

    #[test]
    fn lists_are_split_at_single_commas() {
        let parts = |text| {
            list(text, "a=A,b=B")
                .map(|parts| parts.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(parts("a=1,b=2"), Ok(vec!["a=1".to_owned(), "b=2".to_owned()]));
        assert_eq!(parts("a=1,,2,b"), Ok(vec!["a=1,2".to_owned(), "b".to_owned()]));
        assert_eq!(parts("a=x=y"), Ok(vec!["a=x=y".to_owned()]));
        for (text, expected) in [
            ("", "found nothing"),
            ("a=1,", "found nothing"),
            ("=1", "found nothing"),
            ("a=1,a=1", "`a` is given twice"),
        ] {
            let error = parts(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
