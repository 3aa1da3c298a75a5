//! Gives the judge all bytes that the product writes to the guest's consoles.

use std::collections::BTreeMap;
use std::ffi::CStr;

use crate::scheduler::{self, Host, Owned};

/// Prefix of the file name of a host's guest console.
pub(crate) const CONSOLE: &str = "console-";

static CONSOLES: Owned<BTreeMap<i32, Host>> = Owned::new(BTreeMap::new());

pub(crate) fn opened(fd: i32, path: &CStr) {
    let host = scheduler::host();
    if host != Host::Outside && path.to_string_lossy().contains(CONSOLE) {
        CONSOLES.with(|consoles| consoles.insert(fd, host));
    }
}

pub(crate) fn closed(fd: i32) {
    CONSOLES.with(|consoles| consoles.remove(&fd));
}

pub(crate) fn written(fd: i32, bytes: &[u8]) {
    let host = CONSOLES.with(|consoles| consoles.get(&fd).copied());
    if let Some(host) = host.filter(|_| scheduler::host() != Host::Outside) {
        let at = scheduler::with(|world| world.now);
        crate::judge::output(at, host, bytes);
        crate::faults::called(crate::faults::Call::Output);
    }
}
