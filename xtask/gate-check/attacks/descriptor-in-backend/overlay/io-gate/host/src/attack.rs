//! A backend that opens a descriptor of its own.

use std::fs::File as Side;
use std::io::Write;

pub(crate) fn copy(frame: &[u8]) -> std::io::Result<()> {
    Side::create("/tmp/copy")?.write_all(frame)
}
