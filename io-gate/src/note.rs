//! Log messages of a device for the host's operator: fixed text and numbers.
//!
//! The gate does not hold the log back, so the log must not contain guest data. The types admit
//! only fixed text and numbers.

use core::fmt;

use log::Level;

/// The log target of all devices' messages.
const TARGET: &str = "devices";

/// A number with its name: `("offset", 8)`.
pub type Number = (&'static str, u64);

/// Reports what an operator should know and may have to act on.
pub fn warn(text: &'static str, numbers: &[Number]) {
    note(Level::Warn, text, numbers);
}

/// Reports normal events of interest.
pub fn info(text: &'static str, numbers: &[Number]) {
    note(Level::Info, text, numbers);
}

/// Reports details that help to debug the device or its driver.
pub fn debug(text: &'static str, numbers: &[Number]) {
    note(Level::Debug, text, numbers);
}

fn note(level: Level, text: &'static str, numbers: &[Number]) {
    log::log!(target: TARGET, level, "{text}{}", Numbers(numbers));
}

/// Formats the numbers that follow the text: ` (offset 8, length 512)`.
struct Numbers<'n>(&'n [Number]);

impl fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, number)) in self.0.iter().enumerate() {
            let before = if index == 0 { " (" } else { ", " };
            write!(f, "{before}{name} {number}")?;
        }
        if self.0.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::Numbers;

    #[test]
    fn numbers_stand_behind_the_text_with_their_names() {
        assert_eq!(Numbers(&[]).to_string(), "");
        assert_eq!(
            Numbers(&[("offset", 8), ("length", 512)]).to_string(),
            " (offset 8, length 512)"
        );
    }
}
