//! Reads random bytes from the host, on the thread that hands the request over.

use io_gate::{Outcome, Space};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::guest_memory::{GuestMemory, fits};

/// Fills a space with random bytes.
pub(crate) fn read(memory: &GuestMemory, into: &Space<'_>) -> (Outcome, Vec<u8>) {
    if !fits(memory, into) {
        return (Outcome::Failed, Vec::new());
    }
    let mut data = vec![0_u8; into.len()];
    let mut filled = 0;
    while filled < data.len() {
        match getrandom(&mut data[filled..], GetRandomFlags::empty()) {
            Ok(got) => filled += got,
            Err(Errno::INTR) => {}
            Err(error) => {
                log::warn!("getrandom: {}", std::io::Error::from(error));
                return (Outcome::Failed, Vec::new());
            }
        }
    }
    (Outcome::Success(data.len() as u32), data)
}
