//! Is correct in debug builds only.

#[cfg(not(debug_assertions))]
pub(crate) fn shout(bytes: &[u8]) {
    let _ = bytes;
}
