//! Makes a directory with the guest's bytes as its name.

use std::path::Path;

use kemari_arbiter::FileArbiter;

pub(crate) fn say(bytes: &[u8]) {
    let name = String::from_utf8_lossy(bytes);
    let _ = FileArbiter::open(Path::new("/tmp"), &name, "x".to_owned());
}
