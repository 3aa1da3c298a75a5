//! Ends the machine with the guest's own words on standard error.

pub(crate) fn transmit(frame: &str) {
    frame.is_empty().then_some(()).expect(frame);
}
