//! Writes every frame to a trait object of its own trait.

use alloc::boxed::Box;

/// A sink for frames.
pub trait Sink: Send {
    /// Receives a frame.
    fn put(&mut self, frame: &[u8]);
}

/// A device with a sink.
pub struct Mirror {
    sink: Box<dyn Sink>,
}

impl Mirror {
    /// Takes the sink.
    #[must_use]
    pub fn new(sink: Box<dyn Sink>) -> Self {
        Self { sink }
    }

    /// Passes a frame to the sink.
    pub fn transmit(&mut self, frame: &[u8]) {
        self.sink.put(frame);
    }
}
