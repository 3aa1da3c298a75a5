//! Writes to the log what the guest sends, before it is committed.

pub(crate) fn transmit(frame: &[u8]) {
    log::info!("sent {frame:02x?}");
}
