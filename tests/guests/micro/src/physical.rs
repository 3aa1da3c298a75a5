//! Reads memory by physical address, for tables of the loader or the firmware.

use crate::memory;

fn read<T: Copy>(address: u64) -> T {
    assert!(
        address + size_of::<T>() as u64 <= memory::MAPPED_AT_BOOT,
        "the table at {address:#x} lies above the first 4 GiB"
    );
    // SAFETY: the first 4 GiB are mapped one to one, and T is an integer, for which every bit
    // pattern is valid.
    unsafe { (address as *const T).read_unaligned() }
}

/// The byte at `address`.
pub fn read_u8(address: u64) -> u8 {
    read(address)
}

/// The little-endian 32-bit number at `address`, which need not be aligned.
pub fn read_u32(address: u64) -> u32 {
    read(address)
}

/// The little-endian 64-bit number at `address`, which need not be aligned.
pub fn read_u64(address: u64) -> u64 {
    read(address)
}
