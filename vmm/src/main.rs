//! The `kemari` binary.
fn main() {}
