//! Writes every frame to a value of its type parameter.

/// A sink for frames.
pub trait Sink: Send {
    /// Receives a frame.
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

    /// Passes a frame to the sink.
    pub fn transmit(&mut self, frame: &[u8]) {
        self.sink.put(frame);
    }
}
