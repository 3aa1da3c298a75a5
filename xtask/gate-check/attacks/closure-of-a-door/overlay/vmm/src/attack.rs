//! Prints by a function in a constant of the module that may print.

pub(crate) fn say(bytes: &[u8]) {
    crate::cli::SAY(&String::from_utf8_lossy(bytes));
}
