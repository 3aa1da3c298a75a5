//! Beeps.

pub(crate) fn bell() {
    log::beep();
}
