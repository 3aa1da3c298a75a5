//! Flags of the tools that look for faults. `cargo xtask` reads them by the same definitions before it builds a tool, so
//! that a slip costs no build.
//!
//! Nothing of a tool or of the product may be here: each command of the project compiles this crate first.

pub mod drivers;
pub mod faults;
pub mod kemari;
pub mod model;
pub mod mutants;
pub mod sim;

use std::ops::RangeInclusive;

/// The longest run that can be asked for, in minutes: a week.
pub const MINUTES: RangeInclusive<u64> = 1..=10_080;
/// Worlds of one search.
pub const WORLDS: RangeInclusive<u64> = 1..=1_000_000_000_000;
/// Seeds: room is left to count on from the first one.
pub const SEEDS: RangeInclusive<u64> = 0..=i64::MAX.cast_unsigned();
/// Threads.
pub const JOBS: RangeInclusive<u64> = 1..=1024;

/// The targets of `cargo xtask fuzz`. The engine that has them takes minutes to build.
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

/// Reads a number of a command line: digits, and nothing else. What was found is said by whoever shows the message.
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
