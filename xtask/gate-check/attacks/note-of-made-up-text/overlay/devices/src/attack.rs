//! Has the guest's own words in a note.

use alloc::string::String;

use io_gate::note;

pub(crate) fn transmit(frame: &[u8]) {
    let text = String::from_utf8_lossy(frame);
    note::info(&text, &[]);
}
