//! Tells the log what the guest sends, byte by byte.

use io_gate::note;

pub(crate) fn transmit(frame: &[u8]) {
    for byte in frame {
        note::info("sent", &[("byte", (*byte).into())]);
    }
}
