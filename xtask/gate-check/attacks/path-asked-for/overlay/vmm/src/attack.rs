//! Checks whether a file with the guest's name exists. Over NFS or autofs, the name is sent.

use std::path::Path;

pub(crate) fn say(bytes: &[u8]) -> bool {
    Path::new("/shared/arbiter").join(&*String::from_utf8_lossy(bytes)).is_file()
}
