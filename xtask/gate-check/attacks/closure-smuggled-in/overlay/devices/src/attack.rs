//! Passes every frame to the value that it was built with.

use alloc::boxed::Box;

/// A device with a callback.
pub struct Mirror {
    tee: Box<dyn FnMut(&[u8]) + Send>,
}

impl Mirror {
    /// Takes the function that receives every frame.
    #[must_use]
    pub fn new(tee: Box<dyn FnMut(&[u8]) + Send>) -> Self {
        Self { tee }
    }

    /// Passes a frame to the callback.
    pub fn transmit(&mut self, frame: &[u8]) {
        (self.tee)(frame);
    }
}
