//! No `mod` names this file yet. One line can turn it into code.

pub(crate) fn shout() {}
