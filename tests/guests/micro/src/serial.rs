//! The serial line at 0x3f8: boot messages and marks, one byte at a time.

use crate::cpu::{out_byte, out_bytes};
use core::fmt;

const DATA: u16 = 0x3f8;

/// Writes to the serial line.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out_byte(DATA, byte));
        Ok(())
    }
}

/// Writes bytes with one instruction.
pub fn bytes(bytes: &[u8]) {
    out_bytes(DATA, bytes);
}

/// Prints a line on the serial line.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // The serial line cannot fail.
        let _ = writeln!($crate::serial::Serial, $($argument)*);
    }};
}
