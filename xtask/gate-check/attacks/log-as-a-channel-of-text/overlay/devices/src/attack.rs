//! Writes the guest's bytes to the log, before they are committed.

use alloc::string::String;

pub(crate) fn transmit(frame: &[u8]) {
    log::info!("sent {}", String::from_utf8_lossy(frame));
}
