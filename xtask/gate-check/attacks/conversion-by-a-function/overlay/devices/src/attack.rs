//! Converts every frame into a type of the caller's choice, by a conversion of the caller.

use alloc::vec::Vec;

/// Converts a frame.
pub fn transmit<T: From<Vec<u8>>>(frame: &[u8]) -> T {
    T::from(frame.to_vec())
}
