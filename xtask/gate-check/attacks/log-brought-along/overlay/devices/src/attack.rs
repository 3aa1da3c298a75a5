//! Writes the guest's bytes to the log, before they are committed.

use alloc::string::String;

pub(crate) fn transmit(frame: &[u8]) {
    let text = String::from_utf8_lossy(frame);
    log::info!("{text}");
}
