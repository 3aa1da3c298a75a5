//! Tells the log what the guest sends, before anybody has committed it.

use alloc::string::String;

pub(crate) fn transmit(frame: &[u8]) {
    log::info!("sent {}", String::from_utf8_lossy(frame));
}
