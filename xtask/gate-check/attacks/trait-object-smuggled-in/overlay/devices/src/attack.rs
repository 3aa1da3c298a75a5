//! Writes to the type behind a trait of its own.

use alloc::boxed::Box;

/// Where frames go besides.
pub trait Sink: Send {
    /// Takes a frame.
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

    /// Sees a frame.
    pub fn transmit(&mut self, frame: &[u8]) {
        self.sink.put(frame);
    }
}
