//! The serial line at port 0x3f8, for boot messages and marks.

use crate::cpu::{out_byte, out_bytes};
use core::fmt;

const DATA: u16 = 0x3f8;

/// The serial line as a destination of formatted text, byte by byte.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out_byte(DATA, byte));
        Ok(())
    }
}

/// Writes bytes to the serial line with one instruction.
pub fn bytes(bytes: &[u8]) {
    out_bytes(DATA, bytes);
}

/// Prints a line on the serial line.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // Ignore the result: a write to the serial line cannot fail.
        let _ = writeln!($crate::serial::Serial, $($argument)*);
    }};
}
