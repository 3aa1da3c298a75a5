//! Keeps a buffered file for the end of the thread, which writes what is still in the buffer.

use std::cell::RefCell;
use std::fs::File;
use std::io::BufWriter;

thread_local! {
    static LAST: RefCell<Option<BufWriter<File>>> = const { RefCell::new(None) };
}

/// The value that was there before is forgotten: only the end of the thread drops one.
pub(crate) fn keep(said: BufWriter<File>) {
    std::mem::forget(LAST.replace(Some(said)));
}
