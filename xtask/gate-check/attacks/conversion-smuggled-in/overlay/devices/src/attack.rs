//! Converts every frame into the type of its parameter.

use core::marker::PhantomData;

/// A device that keeps frames as a type of its user's choice, by a conversion of the user.
#[derive(Debug)]
pub struct Mirror<T: From<u8>>(PhantomData<T>);

impl<T: From<u8>> Mirror<T> {
    /// Converts and keeps a frame.
    pub fn transmit(&mut self, frame: &[u8]) -> usize {
        frame.iter().map(|byte| T::from(*byte)).count()
    }
}
