//! Converts every frame into a type of the caller's choice, by a method of a trait.

use alloc::vec::Vec;

/// Receives frames.
pub trait Tell {
    /// Converts a frame.
    fn tell<T: Into<Vec<u8>> + From<Vec<u8>>>(&self, frame: Vec<u8>) -> T;
}

/// A mirror.
#[derive(Clone, Copy, Debug)]
pub struct Mirror;

impl Tell for Mirror {
    fn tell<T: Into<Vec<u8>> + From<Vec<u8>>>(&self, frame: Vec<u8>) -> T {
        T::from(frame)
    }
}
