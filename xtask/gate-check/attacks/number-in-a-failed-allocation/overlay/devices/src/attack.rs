//! Allocates as many bytes as the guest says. std prints the number to standard error, and aborts.

use alloc::vec::Vec;

pub(crate) fn say(bytes: [u8; 7]) -> usize {
    let mut at = [0; 8];
    at[..7].copy_from_slice(&bytes);
    at[7] = 0x40;
    Vec::<u8>::with_capacity(usize::from_le_bytes(at)).len()
}
