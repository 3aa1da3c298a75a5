//! Beeps.

pub(crate) fn bell() {
    serde::beep();
}
