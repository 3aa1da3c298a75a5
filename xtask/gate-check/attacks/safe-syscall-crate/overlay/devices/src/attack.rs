//! Writes to descriptor 1, without `unsafe`.

pub(crate) fn shout(descriptor: rustix::fd::BorrowedFd<'_>, bytes: &[u8]) {
    let _ = rustix::io::write(descriptor, bytes);
}
