//! An adapter that has the guest's bytes written to the log by a function of its crate.

pub(crate) fn written(from: &[u8]) {
    crate::told::say(&String::from_utf8_lossy(from));
}
