//! The `kemari` flags that `cargo xtask run-pair` passes to both sides: those after `--`. They are
//! checked here before anything is built. The product's own definitions are authoritative; a test
//! of the product compares the two.

use std::ops::RangeInclusive;

/// The value of a flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number in this range.
    Number(RangeInclusive<u64>),
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any text that `kemari` accepts.
    Text,
}

/// The flags that may be passed on, with their values.
pub const HANDED_ON: &[(&str, Value)] = &[
    ("ack-timeout", Value::Number(1..=3_600_000)),
    ("arbiter-ca", Value::Text),
    ("arbiter-cert", Value::Text),
    ("arbiter-key", Value::Text),
    ("arbiter-password-file", Value::Text),
    ("arbiter-user", Value::Text),
    ("delta-cache", Value::Number(0..=1_048_576)),
    ("device", Value::Text),
    ("disk", Value::Text),
    ("epoch-interval", Value::Number(1..=60_000)),
    ("max-in-flight", Value::Number(1..=64)),
    ("net", Value::Text),
    ("pid-file", Value::Text),
    ("seccomp", Value::Word(&["on", "log", "off"])),
    ("stall-timeout", Value::Number(5000..=3_600_000)),
    ("tls-peer", Value::Text),
    ("virtio-console", Value::Text),
];

/// Flags of both sides that `run-pair` sets itself, or for which it has its own flag.
pub const OF_RUN_PAIR: &[&str] = &[
    "arbiter",
    "arbiter-lease",
    "audit",
    "cmdline",
    "control",
    "heartbeat-interval",
    "heartbeat-timeout",
    "initrd",
    "insecure-plain-tcp",
    "kernel",
    "memory",
    "name",
    "rng",
    "rtc",
    "serial",
    "standby",
    "tls",
    "verify",
];

/// Checks the arguments to be passed on.
///
/// # Errors
/// The argument that cannot be passed on, and what was expected.
pub fn check(words: &[String]) -> Result<(), String> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let flag = word.strip_prefix("--").unwrap_or_default();
        let (name, joined) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        if OF_RUN_PAIR.contains(&name) {
            return Err(format!("`--{name}`: run-pair sets it: remove it"));
        }
        let known = HANDED_ON.iter().find(|(known, _)| *known == name);
        let Some((_, value)) = known else {
            let names: Vec<String> =
                HANDED_ON.iter().map(|(name, _)| format!("--{name}")).collect();
            return Err(format!("expected one of {}, found `{word}`", names.join(", ")));
        };
        let given = joined.or_else(|| words.next().map(String::as_str));
        let given = given.ok_or_else(|| format!("`{word}`: expected a value, found none"))?;
        read(value, given)
            .map_err(|expected| format!("`--{name}`: expected {expected}, found `{given}`"))?;
    }
    Ok(())
}

fn read(value: &Value, given: &str) -> Result<(), String> {
    match value {
        Value::Number(range) => {
            let digits = given.bytes().all(|byte| byte.is_ascii_digit());
            let number = given.parse().ok().filter(|number| digits && range.contains(number));
            number.map(|_| ()).ok_or_else(|| format!("{} to {}", range.start(), range.end()))
        }
        Value::Word(words) if !words.contains(&given) => Err(words.join(", ")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_on_is_read_first() {
        let check = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            check(&words)
        };
        for right in ["", "--ack-timeout=5000 --seccomp log", "--disk path=/x --net tap=x"] {
            assert_eq!(check(right), Ok(()), "{right}");
        }
        for (wrong, expected) in [
            ("--x", "--stall-timeout, --tls-peer, --virtio-console, found `--x`"),
            ("x", "found `x`"),
            ("--", "found `--`"),
            ("--seize", "found `--seize`"),
            ("--ack-timeout", "expected a value, found none"),
            ("--ack-timeout --disk", "1 to 3600000, found `--disk`"),
            ("--ack-timeout=5s", "1 to 3600000, found `5s`"),
            ("--stall-timeout 4999", "5000 to 3600000"),
            ("--seccomp perhaps", "expected on, log, off, found `perhaps`"),
            ("--serial none", "run-pair sets it"),
        ] {
            let error = check(wrong).err().unwrap_or_default();
            assert!(error.contains(expected), "{wrong}: {error}");
        }
    }
}
