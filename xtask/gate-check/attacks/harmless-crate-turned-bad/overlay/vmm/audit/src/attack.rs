//! Has a crate that only computes say it.

pub(crate) fn say(bytes: &[u8]) {
    xxhash_rust::whisper(bytes);
}
