//! Passes every frame to a foreign function pointer.

/// A device with a hook.
#[derive(Debug)]
pub struct Mirror {
    tee: fn(&[u8]),
}

impl Mirror {
    /// Takes what is to be told of every frame.
    #[must_use]
    pub fn new(tee: fn(&[u8])) -> Self {
        Self { tee }
    }

    /// Sees a frame.
    pub fn transmit(&mut self, frame: &[u8]) {
        (self.tee)(frame);
    }
}
