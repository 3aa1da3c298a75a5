//! Flags of the tools that search for faults. `cargo xtask` parses them with the same definitions
//! before it builds a tool, so that a mistake costs no build.
//!
//! This crate may not contain code of a tool or of the product: each command of the project
//! compiles it first.

pub mod drivers;
pub mod faults;
pub mod kemari;
pub mod model;
pub mod mutants;
pub mod sim;

use std::ops::RangeInclusive;

/// Duration of a run in minutes, up to a week.
pub const MINUTES: RangeInclusive<u64> = 1..=10_080;
/// Number of worlds of a search.
pub const WORLDS: RangeInclusive<u64> = 1..=1_000_000_000_000;
/// Seeds. The maximum leaves room to count up from the first seed.
pub const SEEDS: RangeInclusive<u64> = 0..=i64::MAX.cast_unsigned();
/// Number of threads.
pub const JOBS: RangeInclusive<u64> = 1..=1024;

/// The targets of `cargo xtask fuzz`, listed here because the engine that contains them takes
/// minutes to build.
pub const FUZZ_TARGETS: [&str; 13] = [
    "wire",
    "bodies",
    "pages",
    "hostile-primary",
    "hostile-standby",
    "chains",
    "registers",
    "states",
    "rings",
    "flags",
    "kernels",
    "checkpoints",
    "records",
];

/// Parses a number of a command line: digits only. The caller that shows the message adds what was
/// found.
///
/// # Errors
/// What was expected.
pub fn numbers<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
    what: &'static str,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|number| digits && range.contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| format!("expected {what} ({} to {})", range.start(), range.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_digits_in_its_range_and_its_type() {
        let read = numbers::<u8>(1..=300, "minutes");
        assert_eq!(read("7"), Ok(7));
        for text in
            ["", "x", "0", "-1", "+1", " 1", "1.5", "5m", "299", "301", "99999999999999999999"]
        {
            assert_eq!(read(text), Err("expected minutes (1 to 300)".to_owned()), "{text}");
        }
    }
}
