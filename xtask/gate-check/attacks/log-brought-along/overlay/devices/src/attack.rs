//! Writes to the log what the guest sends, before it is committed.

use alloc::string::String;

pub(crate) fn transmit(frame: &[u8]) {
    let text = String::from_utf8_lossy(frame);
    log::info!("{text}");
}
