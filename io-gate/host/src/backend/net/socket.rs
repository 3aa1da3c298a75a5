//! The system calls on Unix sockets that both kinds of socket network share.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::guest_memory::Gather;

/// The longest path of a Unix socket: its address has 108 bytes with the final zero.
pub(super) const MAX_PATH: usize = 107;
/// What a socket is asked to buffer; the system grants less if it must.
const SEND_BUFFER: libc::c_int = 1024 * 1024;

/// A Unix socket that never blocks.
pub(super) fn open(kind: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system has just given us this descriptor; nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_send_buffer(&socket, SEND_BUFFER);
    Ok(socket)
}

pub(super) fn bind(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    let (address, len) = address(path)?;
    // SAFETY: `address` is a valid socket address of `len` bytes for the duration of the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })
}

pub(super) fn connect(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    let (address, len) = address(path)?;
    // SAFETY: `address` is a valid socket address of `len` bytes for the duration of the call.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })
}

/// A larger buffer only makes it less likely that frames have to wait, so failing is no error.
fn set_send_buffer(socket: &OwnedFd, bytes: libc::c_int) {
    // SAFETY: the pointer and the length describe `bytes`, which lives through the call.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH || bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket path"));
    }
    // SAFETY: all-zero bytes are a valid `sockaddr_un`: it is plain numbers.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok((address, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

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

/// Receives what the socket has now; none if it has nothing.
pub(super) fn receive_message(fd: RawFd, into: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: the pointer and the length describe `into`.
        let got =
            unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
        if let Some(result) = outcome(got) {
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

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
