//! Code that a reviewer of the crate does not see.

pub(crate) const GREETING: &[u8] = b"hello";
