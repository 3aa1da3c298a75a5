//! Writes the guest's bytes as a key of TLS, to the file that the environment names.

use rustls::{KeyLog, KeyLogFile};

pub(crate) fn say(bytes: &[u8]) {
    KeyLogFile::new().log("guest", &[], bytes);
}
