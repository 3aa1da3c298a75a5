//! Writes the guest's bytes to standard error, through a safe wrapper of the system call.

use std::os::fd::AsFd;

pub(crate) fn write(to: impl AsFd, bytes: &[u8]) {
    let _ = rustix::io::write(to, bytes);
}

pub(crate) fn say(bytes: &[u8]) {
    write(std::io::stderr(), bytes);
}
