//! Passes the guest's bytes to a dependency that makes a system call.

pub(crate) fn tell(bytes: &[u8]) {
    serde::whisper(bytes);
}
