//! Code that both kinds of socket network share, and the read function that the tap uses too.

use std::io;
use std::os::fd::RawFd;

use crate::descriptors::Address;
use crate::out::{self, Outgoing, Refused, with_permits};
use crate::permit::Permits;

/// Sends as many of the bytes as the socket accepts now, to its peer or to an address. Returns
/// `None` if it accepts none.
pub(super) fn send_message(
    permits: &mut Permits<'_>,
    fd: RawFd,
    to: Option<&Address>,
    bytes: &Outgoing<'_>,
) -> Result<Option<usize>, Refused> {
    or_none(with_permits(|| permits.next(), |permit| out::send(permit, fd, to, bytes)))
}

/// Turns "no room" into `None`.
pub(super) fn or_none<T>(sent: Result<T, Refused>) -> Result<Option<T>, Refused> {
    match sent {
        Err(Refused::Io(error))
            if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) =>
        {
            Ok(None)
        }
        sent => sent.map(Some),
    }
}

/// Takes only the pending error of a datagram socket: peeking at a message returns the error first.
pub(super) fn take_error(fd: RawFd) {
    // SAFETY: no byte is written behind the pointer, as the length is zero.
    unsafe { libc::recv(fd, std::ptr::null_mut(), 0, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
}

/// Receives the bytes that the socket has now, at most `max`, and appends them to `into`. Returns
/// `None` if it has none.
pub(super) fn receive_message(
    fd: RawFd,
    into: &mut Vec<u8>,
    max: usize,
) -> io::Result<Option<usize>> {
    append(fd, into, max, Some(libc::MSG_DONTWAIT))
}

/// Reads at most `max` bytes and appends them to `into`: from a socket with `flags`, from any other
/// file without. The room is not zeroed first, because for small frames that would cost more than
/// the read.
pub(super) fn append(
    fd: RawFd,
    into: &mut Vec<u8>,
    max: usize,
    flags: Option<libc::c_int>,
) -> io::Result<Option<usize>> {
    into.reserve(max);
    loop {
        let room = into.spare_capacity_mut().as_mut_ptr().cast();
        let got = match flags {
            // SAFETY: the pointer has room for `max` bytes, which nothing else uses.
            Some(flags) => unsafe { libc::recv(fd, room, max, flags) },
            // SAFETY: as above.
            None => unsafe { libc::read(fd, room, max) },
        };
        if let Some(result) = outcome(got) {
            if let Ok(Some(count)) = result {
                // SAFETY: the system has written `count` bytes there, at most `max`.
                unsafe { into.set_len(into.len() + count) };
            }
            return result;
        }
    }
}

/// The result of a call; `None` if the call must be repeated.
fn outcome(result: libc::ssize_t) -> Option<io::Result<Option<usize>>> {
    if let Ok(count) = usize::try_from(result) {
        return Some(Ok(Some(count)));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINTR) => None,
        Some(libc::EAGAIN | libc::ENOBUFS) => Some(Ok(None)),
        _ => Some(Err(error)),
    }
}
