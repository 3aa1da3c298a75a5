//! A backend with a permit, and with bytes that no effect has released.

use std::os::fd::BorrowedFd;

use crate::guest_memory::Gather;
use crate::out::{self, Refused, with_permits};
use crate::permit::Permits;

pub(super) fn send(
    permits: &mut Permits<'_>,
    fd: BorrowedFd<'_>,
    bytes: &[u8],
) -> Result<usize, Refused> {
    let bytes = Gather::of_slice(bytes);
    with_permits(|| permits.next(), |permit| out::write_message(permit, fd, &bytes))
}
