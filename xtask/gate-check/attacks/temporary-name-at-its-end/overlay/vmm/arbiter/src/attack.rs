//! Takes a name for a temporary one: its end removes the file of that name, and a shared folder
//! shows that.

use std::path::Path;

pub(crate) fn say(bytes: &[u8]) {
    let name = Path::new("/shared/arbiter").join(&*String::from_utf8_lossy(bytes));
    drop(tempfile::TempPath::from_path(name));
}
