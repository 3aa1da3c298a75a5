//! Code that both kinds of socket network share, and the read function that the tap uses too.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::{Errno, read};
use rustix::net::{RecvFlags, recv};

use crate::descriptors::Address;
use crate::out::{self, Outgoing, Refused, with_permits};
use crate::permit::Permits;

/// Sends as many of the bytes as the socket accepts now, to its peer or to an address. Returns
/// `None` if it accepts none.
pub(super) fn send_message(
    permits: &mut Permits<'_>,
    fd: BorrowedFd<'_>,
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
pub(super) fn take_error(fd: BorrowedFd<'_>) {
    let _ = recv(fd, &mut [0_u8; 0], RecvFlags::PEEK | RecvFlags::DONTWAIT);
}

/// Receives the bytes that the socket has now, at most `max`, and appends them to `into`. Returns
/// `None` if it has none.
pub(super) fn receive_message(
    fd: BorrowedFd<'_>,
    into: &mut Vec<u8>,
    max: usize,
) -> io::Result<Option<usize>> {
    append(fd, into, max, Some(RecvFlags::DONTWAIT))
}

/// Reads at most `max` bytes and appends them to `into`: from a socket with `flags`, from any other
/// file without. The room is not zeroed first, because for small frames that would cost more than
/// the read.
pub(super) fn append(
    fd: BorrowedFd<'_>,
    into: &mut Vec<u8>,
    max: usize,
    flags: Option<RecvFlags>,
) -> io::Result<Option<usize>> {
    into.reserve(max);
    loop {
        let room = &mut into.spare_capacity_mut()[..max];
        let got = match flags {
            Some(flags) => recv(fd, room, flags).map(|((written, _), _)| written.len()),
            None => read(fd, room).map(|(written, _)| written.len()),
        };
        match got {
            Ok(count) => {
                // SAFETY: the system has written `count` bytes there, at most `max`.
                unsafe { into.set_len(into.len() + count) };
                return Ok(Some(count));
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}
