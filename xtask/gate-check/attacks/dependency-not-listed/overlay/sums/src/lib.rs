//! Sums, today.
#![no_std]
#![forbid(unsafe_code)]

/// The sum of all bytes.
pub fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().map(|&byte| u64::from(byte)).sum()
}
