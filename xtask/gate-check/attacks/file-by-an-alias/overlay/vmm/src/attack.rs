//! Writes the guest's bytes to a file, and names neither the file's type nor its module.

mod names {
    pub(super) use std::fs::*;
    pub(super) type Paper = File;
}

use std::io::Write;

use names::Paper;

pub(crate) fn keep(bytes: &[u8]) {
    if let Ok(mut paper) = Paper::create("/tmp/kept") {
        let _ = paper.write(bytes);
    }
}
