//! Devices of other crates, taken in behind the gate without being rewritten.

mod serial;

pub use serial::Serial;
