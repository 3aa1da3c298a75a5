//! Why two sides do not fit.

use alloc::string::String;
use alloc::vec::Vec;

/// The two sides do not fit. Each reason has the values of both sides and advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub Vec<String>);

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl core::error::Error for Refusal {}
