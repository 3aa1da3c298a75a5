//! Closes the descriptor with the guest's byte as its number: the other end of a pipe or connection
//! sees it.

use std::os::fd::OwnedFd;

pub(crate) fn say(byte: u8) {
    // SAFETY: none: this is an attack.
    drop(unsafe { core::mem::transmute::<i32, OwnedFd>(i32::from(byte)) });
}
