//! A guest that means no good: writes without end what costs its host something, and serves between.

use crate::{power, serial};

/// What it writes without end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Nothing.
    Nothing,
    /// Sleep types that the machine does not have.
    SleepTypes,
    /// Bytes to the serial line.
    Serial,
}

/// How many writes between two looks for work.
const AT_ONCE: usize = 64;

impl Flood {
    /// By its name on the command line.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "sleep-types" => Some(Self::SleepTypes),
            "serial" => Some(Self::Serial),
            _ => None,
        }
    }

    /// Writes some more of it.
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
