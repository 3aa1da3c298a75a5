//! Keeps a buffered file until the thread ends. Then the rest of its buffer is written.

use std::cell::RefCell;
use std::fs::File;
use std::io::BufWriter;

thread_local! {
    static LAST: RefCell<Option<BufWriter<File>>> = const { RefCell::new(None) };
}

/// Forgets the previous value, so that only the end of the thread drops one.
pub(crate) fn keep(said: BufWriter<File>) {
    std::mem::forget(LAST.replace(Some(said)));
}
