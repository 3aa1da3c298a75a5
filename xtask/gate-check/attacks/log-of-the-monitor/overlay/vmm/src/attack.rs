//! Writes the guest's bytes to the log.

pub(crate) fn say(bytes: &[u8]) {
    log::info!("the guest has written {}", String::from_utf8_lossy(bytes));
}
