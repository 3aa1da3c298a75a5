//! Checks that a takeover can open a console's file. Creates and writes nothing.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use io_gate_host::own_files;
use rustix::fs::{Access, access};

/// P7: the guest must not stop because of its console, so the console is checked in advance.
pub(super) fn usable(path: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("console {}: {error}", path.display());
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => {
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
            let opened = OpenOptions::new().append(true).custom_flags(flags).open(path);
            opened.map(drop).map_err(failed)
        }
        Ok(found) if found.is_dir() => {
            let found = own_files::describe(&found);
            Err(format!("console {}: expected a file, found {found}", path.display()))
        }
        // Do not open it: that may disturb the process at the other end.
        Ok(_) => access(path, Access::WRITE_OK).map_err(|error| failed(error.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            access(parent, Access::WRITE_OK).map_err(|error| failed(error.into()))
        }
        Err(error) => Err(failed(error)),
    }
}
