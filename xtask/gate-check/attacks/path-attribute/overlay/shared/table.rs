//! Out of the reviewer's sight.

pub(crate) const GREETING: &[u8] = b"hello";
