//! Drops a buffered file: its end writes what is still in the buffer.

use std::fs::File;
use std::io::BufWriter;

pub(crate) fn end(said: BufWriter<File>) {
    drop(said);
}
