//! Has every frame converted into whatever its caller likes: the parameter itself has a plain bound.

use alloc::vec::Vec;

/// Sees a frame.
pub fn transmit<T: Default>(frame: Vec<u8>) -> T
where
    Vec<u8>: Into<T>,
{
    frame.into()
}
