//! Keeps a file without a name for it.

pub(crate) struct Tracer {
    pub(crate) sink: serde::Sink,
}
