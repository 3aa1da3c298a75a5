//! Holds a file by a type of a dependency, without a name of std.

pub(crate) struct Tracer {
    pub(crate) sink: serde::Sink,
}
