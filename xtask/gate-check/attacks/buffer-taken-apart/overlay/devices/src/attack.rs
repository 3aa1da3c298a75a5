//! Keeps what must not be kept, without a word of it.

use alloc::vec::Vec;

pub(crate) fn keep(bytes: Vec<u8>) -> usize {
    let (_, length, _) = bytes.into_raw_parts();
    length
}
