//! What a device says to the operator of the host: fixed text, and numbers. The log is not held back by the gate, so nothing of
//! the guest's may be in it; the types leave room for no more than a number.

use core::fmt;

use log::Level;

/// The name under which the notes of all devices are in the log.
const TARGET: &str = "devices";

/// A number with its name: `("offset", 8)`.
pub type Number = (&'static str, u64);

/// Something that an operator should know, and may do something about.
pub fn warn(text: &'static str, numbers: &[Number]) {
    note(Level::Warn, text, numbers);
}

/// Something that is worth knowing.
pub fn info(text: &'static str, numbers: &[Number]) {
    note(Level::Info, text, numbers);
}

/// Something for whoever looks for a fault in the device or its driver.
pub fn debug(text: &'static str, numbers: &[Number]) {
    note(Level::Debug, text, numbers);
}

fn note(level: Level, text: &'static str, numbers: &[Number]) {
    log::log!(target: TARGET, level, "{text}{}", Numbers(numbers));
}

/// As they stand behind the text: ` (offset 8, length 512)`.
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
