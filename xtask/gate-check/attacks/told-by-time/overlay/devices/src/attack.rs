//! Encodes the guest's byte in the time for which the machine does not answer.

pub(crate) fn process(byte: u8) -> u64 {
    let turns = u64::from(byte) * 1_000_000;
    (0..turns).fold(0, |sum: u64, turn| sum.wrapping_mul(31).wrapping_add(turn))
}
