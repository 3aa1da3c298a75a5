//! A hostile guest: writes without end to a port that costs its host work, and serves requests in
//! between.

use crate::{power, serial};

/// The target of the writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// No writes.
    Nothing,
    /// The power management port: sleep types that the machine does not have.
    SleepTypes,
    /// The serial line.
    Serial,
}

/// Number of writes between two polls for work.
const AT_ONCE: usize = 64;

impl Flood {
    /// Parses the name on the command line.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "sleep-types" => Some(Self::SleepTypes),
            "serial" => Some(Self::Serial),
            _ => None,
        }
    }

    /// Writes a few times.
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
