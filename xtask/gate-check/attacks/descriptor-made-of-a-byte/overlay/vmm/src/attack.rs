//! Closes a descriptor of the guest's choice: the other end of a pipe or a connection sees it.

use std::os::fd::OwnedFd;

pub(crate) fn say(byte: u8) {
    // SAFETY: none: this is an attack.
    drop(unsafe { core::mem::transmute::<i32, OwnedFd>(i32::from(byte)) });
}
