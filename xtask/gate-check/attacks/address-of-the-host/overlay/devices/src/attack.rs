//! Tells the guest where the host keeps its bytes; after a takeover it is elsewhere.

pub(crate) fn register(bytes: &[u8], text: &str) -> u64 {
    bytes.as_ptr() as u64 ^ text.as_ptr() as u64
}
