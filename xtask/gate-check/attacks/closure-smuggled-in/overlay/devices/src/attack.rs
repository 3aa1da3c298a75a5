//! Passes every frame to the value that it was built with.

use alloc::boxed::Box;

/// A device with a callback.
pub struct Mirror {
    tee: Box<dyn FnMut(&[u8]) + Send>,
}

impl Mirror {
    /// Takes what is to be told of every frame.
    #[must_use]
    pub fn new(tee: Box<dyn FnMut(&[u8]) + Send>) -> Self {
        Self { tee }
    }

    /// Sees a frame.
    pub fn transmit(&mut self, frame: &[u8]) {
        (self.tee)(frame);
    }
}
