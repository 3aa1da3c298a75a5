//! Panics with the guest's bytes as the message, which is written to standard error.

pub(crate) fn transmit(frame: &str) {
    frame.is_empty().then_some(()).expect(frame);
}
