//! Panics with the guest's bytes as the message, which is written to standard error.

use alloc::string::String;

pub(crate) fn transmit(frame: &[u8]) {
    let text = String::from_utf8_lossy(frame);
    panic!("{text}");
}
