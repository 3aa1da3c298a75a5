//! A hostile guest: writes forever what costs its host work, and serves requests in between.

use crate::{power, serial};

/// What it writes forever.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Nothing.
    Nothing,
    /// Sleep types that the machine does not have.
    SleepTypes,
    /// Bytes to the serial line.
    Serial,
}

/// Number of writes between two polls for work.
const AT_ONCE: usize = 64;

impl Flood {
    /// The flood with this name on the command line.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "sleep-types" => Some(Self::SleepTypes),
            "serial" => Some(Self::Serial),
            _ => None,
        }
    }

    /// Writes a few more.
    pub fn step(self) {
        for _ in 0..AT_ONCE {
            match self {
                Self::Nothing => return,
                Self::SleepTypes => power::nonsense(),
                Self::Serial => serial::bytes(&[b'~'; 64]),
            }
        }
    }
}
