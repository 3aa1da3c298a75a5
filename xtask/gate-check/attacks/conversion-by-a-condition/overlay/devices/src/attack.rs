//! Converts every frame into a type of the caller's choice: the parameter itself has a plain bound.

use alloc::vec::Vec;

/// Converts a frame.
pub fn transmit<T: Default>(frame: Vec<u8>) -> T
where
    Vec<u8>: Into<T>,
{
    frame.into()
}
