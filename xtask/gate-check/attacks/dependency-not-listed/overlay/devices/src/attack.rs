//! Adds up bytes by another crate.

pub(crate) fn sum(bytes: &[u8]) -> u64 {
    sums::sum(bytes)
}
