//! Writes to the type that it is built with.

/// Where frames go besides.
pub trait Sink: Send {
    /// Takes a frame.
    fn put(&mut self, frame: &[u8]);
}

/// A device with a sink.
#[derive(Debug)]
pub struct Mirror<S: Sink> {
    sink: S,
}

impl<S: Sink> Mirror<S> {
    /// Takes the sink.
    #[must_use]
    pub fn new(sink: S) -> Self {
        Self { sink }
    }

    /// Sees a frame.
    pub fn transmit(&mut self, frame: &[u8]) {
        self.sink.put(frame);
    }
}
