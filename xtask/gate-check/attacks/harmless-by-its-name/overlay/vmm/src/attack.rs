//! Passes the guest's bytes to a crate with a harmless name.

pub(crate) fn say(bytes: &[u8]) {
    hashbrown::tell(bytes);
}
