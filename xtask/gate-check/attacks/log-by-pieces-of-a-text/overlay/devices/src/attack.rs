//! Writes the guest's bytes to the log, spelled by pieces of a fixed text.

use io_gate::note;

const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz";

pub(crate) fn transmit(frame: &[u8]) {
    for byte in frame {
        let at = usize::from(byte.wrapping_sub(b'a'));
        note::info(LETTERS.get(at..=at).unwrap_or_default(), &[]);
    }
}
