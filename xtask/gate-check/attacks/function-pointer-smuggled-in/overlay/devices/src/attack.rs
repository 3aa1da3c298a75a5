//! Passes every frame to a foreign function pointer.

/// A device with a hook.
#[derive(Debug)]
pub struct Mirror {
    tee: fn(&[u8]),
}

impl Mirror {
    /// Takes the function that receives every frame.
    #[must_use]
    pub fn new(tee: fn(&[u8])) -> Self {
        Self { tee }
    }

    /// Passes a frame to the hook.
    pub fn transmit(&mut self, frame: &[u8]) {
        (self.tee)(frame);
    }
}
