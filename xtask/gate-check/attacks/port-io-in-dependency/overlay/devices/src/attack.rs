//! Calls a dependency that writes to an I/O port.

pub(crate) fn bell() {
    serde::beep();
}
