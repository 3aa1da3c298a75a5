//! Writes the guest's bytes to the log, before they are committed.

pub(crate) fn transmit(frame: &[u8]) {
    log::info!("sent {frame:02x?}");
}
