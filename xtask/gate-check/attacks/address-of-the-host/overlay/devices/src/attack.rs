//! Gives the guest an address of the host. After a takeover the address is another one.

pub(crate) fn register(bytes: &[u8], text: &str) -> u64 {
    bytes.as_ptr() as u64 ^ text.as_ptr() as u64
}
