//! The system calls on Unix sockets that both kinds of socket network share.

use std::io;
use std::os::fd::RawFd;

use crate::guest_memory::Gather;

/// Sends what the socket takes now; none if it takes nothing.
pub(super) fn send_message(fd: RawFd, bytes: &Gather<'_>) -> io::Result<Option<usize>> {
    let copy;
    let mut whole;
    let bytes = if bytes.pieces().len() <= libc::UIO_MAXIOV as usize {
        bytes
    } else {
        copy = bytes.to_vec(usize::MAX);
        whole = Gather::of_slice(&copy);
        &mut whole
    };
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = bytes.pieces().as_ptr().cast_mut();
    message.msg_iovlen = bytes.pieces().len() as _;
    loop {
        // SAFETY: the message points to pieces that are valid for reads while `bytes` borrows
        // them; sendmsg does not write to them.
        let sent = unsafe { libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
        if let Some(result) = outcome(sent) {
            return result;
        }
    }
}

/// Receives what the socket has now, at most `max` bytes, behind what is in `into`; none if it has nothing.
pub(super) fn receive_message(
    fd: RawFd,
    into: &mut Vec<u8>,
    max: usize,
) -> io::Result<Option<usize>> {
    append(fd, into, max, Some(libc::MSG_DONTWAIT))
}

/// Reads at most `max` bytes behind what is in `into`: from a socket with flags, from anything else
/// without. The room is not cleared first, which for small frames would cost more than all the rest.
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
            // SAFETY: there is room for `max` bytes behind the pointer, which nobody else uses.
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

/// What a call has given; none if it is to be made again.
pub(super) fn outcome(result: libc::ssize_t) -> Option<io::Result<Option<usize>>> {
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
