//! Uses the guest's bytes as a temporary file's name. The value's end removes the file, which other
//! users of a shared folder can see.

use std::path::Path;

pub(crate) fn say(bytes: &[u8]) {
    let name = Path::new("/shared/arbiter").join(&*String::from_utf8_lossy(bytes));
    drop(tempfile::TempPath::from_path(name));
}
