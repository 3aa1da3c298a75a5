//! The serial line at 0x3f8: boot messages and marks, one byte at a time.

use crate::cpu::{in_byte, out_byte};
use core::fmt;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = 0x3fd;
const DATA_READY: u8 = 1;

/// Writes to the serial line.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out_byte(DATA, byte));
        Ok(())
    }
}

/// The next byte that somebody typed.
pub fn read_byte() -> Option<u8> {
    (in_byte(LINE_STATUS) & DATA_READY != 0).then(|| in_byte(DATA))
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
