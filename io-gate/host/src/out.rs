//! All system calls by which this crate lets data out. Each takes a permit (P2), and its data
//! belongs to a released effect (P1).
//!
//! `tests/one_way_out.rs` checks that no other module makes such a call. A call interrupted by a
//! signal is not repeated here: the caller requests another permit first.

mod released;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::FallocateFlags;
use rustix::net::SendFlags;

use crate::descriptors::Address;
use crate::given_up::NotPermitted;
use crate::guest_memory::Gather;
use crate::permit::Permit;
pub(crate) use released::{Kept, Outgoing, PREFIX, Prefix, Released, Stretch};

/// The most pieces that one gathering system call takes.
const MAX_PIECES: usize = libc::UIO_MAXIOV as usize;

/// Why data was not let out.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It is not permitted. Part of it may have been let out before.
    NotPermitted,
    /// The system's reason.
    Io(io::Error),
}

impl From<NotPermitted> for Refused {
    fn from(NotPermitted: NotPermitted) -> Self {
        Self::NotPermitted
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Repeats a call after a signal or an expired permit. Each attempt has its own permit.
pub(crate) fn with_permits<T>(
    mut permit: impl FnMut() -> Result<Permit, NotPermitted>,
    mut call: impl FnMut(Permit) -> io::Result<T>,
) -> Result<T, Refused> {
    loop {
        match call(permit()?) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return Ok(result?),
        }
    }
}

/// Sends one message on a socket, to its peer or to an address, without waiting for room.
pub(crate) fn send(
    permit: Permit,
    fd: BorrowedFd<'_>,
    to: Option<&Address>,
    bytes: &Outgoing<'_>,
) -> io::Result<usize> {
    gathered(bytes, |pieces| {
        let call = |name: *const libc::c_void, len| {
            // SAFETY: all-zero bytes are a valid `msghdr`.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            (message.msg_name, message.msg_namelen) = (name.cast_mut(), len);
            message.msg_iov = pieces.as_ptr().cast_mut();
            message.msg_iovlen = pieces.len() as _;
            let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
            permit.spend()?;
            // SAFETY: the message points to an address and to pieces that are valid for reads
            // through the call; sendmsg does not write to them.
            count(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, flags) })
        };
        match to {
            Some(to) => to.with_parts(call),
            None => call(std::ptr::null(), 0),
        }
    })
}

/// Writes one message in one call: a tap would make two frames of two calls.
pub(crate) fn write_message(
    permit: Permit,
    fd: BorrowedFd<'_>,
    bytes: &Outgoing<'_>,
) -> io::Result<usize> {
    gathered(bytes, |pieces| {
        permit.spend()?;
        // SAFETY: the pieces are valid for reads through the call.
        count(unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) })
    })
}

/// Writes some bytes.
pub(crate) fn write(permit: Permit, fd: BorrowedFd<'_>, bytes: &Kept) -> io::Result<usize> {
    let bytes = bytes.bytes();
    permit.spend()?;
    Ok(rustix::io::write(fd, bytes)?)
}

/// Sends some bytes on a stream, without waiting for room.
pub(crate) fn send_bytes(permit: Permit, fd: BorrowedFd<'_>, bytes: &Kept) -> io::Result<usize> {
    let bytes = bytes.bytes();
    permit.spend()?;
    Ok(rustix::net::send(fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}

/// An open image to write to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'f> {
    pub(crate) file: &'f File,
    /// Each write must be in the storage when it returns, although the image was not opened with
    /// `O_DSYNC`: protection began later (P3).
    pub(crate) durably: bool,
}

/// Writes some of the bytes at an offset of a file, at least one.
pub(crate) fn write_at(
    permit: Permit,
    target: Target<'_>,
    at: u64,
    bytes: &Outgoing<'_>,
) -> io::Result<usize> {
    let bytes = bytes.gather();
    let pieces = &bytes.pieces()[..bytes.pieces().len().min(MAX_PIECES)];
    let offset =
        libc::off_t::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let (file, count_of) = (target.file.as_raw_fd(), pieces.len() as libc::c_int);
    permit.spend()?;
    // SAFETY: the pieces are valid for reads while `bytes` borrows them, and there are at most
    // UIO_MAXIOV of them.
    let written = unsafe {
        match target.durably {
            false => libc::pwritev(file, pieces.as_ptr(), count_of, offset),
            true => libc::pwritev2(file, pieces.as_ptr(), count_of, offset, libc::RWF_DSYNC),
        }
    };
    match count(written)? {
        // A caller that continues after a write of 0 bytes would loop for ever.
        0 if bytes.len() > 0 => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}

/// Deallocates or zeroes a part of a file.
pub(crate) fn allocate(
    permit: Permit,
    _effect: Released<'_>,
    file: &File,
    mode: FallocateFlags,
    at: u64,
    len: u64,
) -> io::Result<()> {
    permit.spend()?;
    Ok(rustix::fs::fallocate(file, mode, at, len)?)
}

/// Makes written data durable. It lets no data out, so it needs no effect.
pub(crate) fn sync(permit: Permit, file: &File) -> io::Result<()> {
    permit.spend()?;
    file.sync_data()
}

/// Copies the bytes into one piece if the call does not take as many pieces as there are.
fn gathered<T>(bytes: &Outgoing<'_>, call: impl FnOnce(&[libc::iovec]) -> T) -> T {
    let bytes = bytes.gather();
    if bytes.pieces().len() <= MAX_PIECES {
        return call(bytes.pieces());
    }
    let copy = bytes.to_vec(usize::MAX);
    call(Gather::of_slice(&copy).pieces())
}

fn count(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
