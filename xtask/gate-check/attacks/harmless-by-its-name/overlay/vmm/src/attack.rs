//! Has a crate with a harmless name keep what it is given.

pub(crate) fn say(bytes: &[u8]) {
    hashbrown::tell(bytes);
}
