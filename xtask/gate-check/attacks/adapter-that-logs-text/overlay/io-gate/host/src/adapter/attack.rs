//! An adapter that tells the operator what the guest has written.

pub(crate) fn written(from: &[u8]) {
    log::info!("the guest has written {}", String::from_utf8_lossy(from));
}
