//! Tells the log what the guest sends, before anybody has committed it.

pub(crate) fn transmit(frame: &[u8]) {
    log::info!("sent {frame:02x?}");
}
