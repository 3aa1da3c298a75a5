//! An adapter that writes the guest's bytes to the log.

pub(crate) fn written(from: &[u8]) {
    log::info!("the guest has written {}", String::from_utf8_lossy(from));
}
