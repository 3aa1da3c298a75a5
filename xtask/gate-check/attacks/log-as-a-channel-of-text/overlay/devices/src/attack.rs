//! Writes to the log what the guest sends, before it is committed.

use alloc::string::String;

pub(crate) fn transmit(frame: &[u8]) {
    log::info!("sent {}", String::from_utf8_lossy(frame));
}
