//! One line away from being code.

pub(crate) fn shout() {}
