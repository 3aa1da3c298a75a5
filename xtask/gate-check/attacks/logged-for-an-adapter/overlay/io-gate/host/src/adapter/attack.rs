//! An adapter that has the operator told what the guest has written.

pub(crate) fn written(from: &[u8]) {
    crate::told::say(&String::from_utf8_lossy(from));
}
