//! `--pid-file`: a file with this process's id, for the lifetime of the process.
//!
//! Only a file that a `kemari` has created is overwritten, and removed at the end. A running
//! `kemari` keeps it locked. An unlocked file is stale, even if another process has that id by now.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use io_gate_host::own_files::{self, FileId, OwnName, PlaceError};
use io_gate_host::ownership::{self, Maker, Opened, Sign};

use super::CliError;

const EXPECTED: &str = "no file, or a pid file that a kemari has made and left";
const SIGN: Sign = Sign { purpose: "pid file", content: Some(is_pid_file) };
/// Follows the id and marks the file as kemari's. Programs that read a number skip it, and no other
/// program writes it.
const END: &str = "\n \n";

/// See the module.
pub(super) struct PidFile {
    // Removed while the file is open, because no other file can have its inode number until then.
    _name: OwnName,
    _file: File,
}

impl PidFile {
    /// Writes this process's id to `path`.
    pub(super) fn write(path: &Path) -> Result<Self, CliError> {
        Self::make(path).map_err(|error| CliError::usage(format!("--pid-file {error}")))
    }

    fn make(path: &Path) -> Result<Self, PlaceError> {
        let failed = |error| PlaceError::Io { path: path.to_owned(), error };
        let opened = ownership::open_or_make(path, &options(), &SIGN);
        let Opened { mut file, maker, is_busy } = opened.map_err(|error| refusal(path, error))?;
        let metadata = file.metadata().map_err(failed)?;
        if maker == Maker::Other || !metadata.is_file() {
            return Err(taken(path, own_files::describe(&metadata)));
        }
        if is_busy {
            return Err(PlaceError::InUse { path: path.to_owned() });
        }
        let name = OwnName::new(path, FileId::of(&metadata));
        file.rewind().and_then(|()| file.set_len(0)).map_err(failed)?;
        write!(file, "{}{END}", std::process::id()).map_err(failed)?;
        Ok(Self { _name: name, _file: file })
    }
}

/// Does not follow a symbolic link: the link's target has another name and another purpose.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

fn taken(path: &Path, found: String) -> PlaceError {
    PlaceError::Taken { path: path.to_owned(), expected: EXPECTED, found }
}

fn refusal(path: &Path, error: io::Error) -> PlaceError {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => taken(path, own_files::describe(&found)),
        _ => PlaceError::Io { path: PathBuf::from(path), error },
    }
}

fn is_pid_file(head: &[u8]) -> bool {
    let id = std::str::from_utf8(head).ok().and_then(|text| text.strip_suffix(END));
    id.is_some_and(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_alone_is_no_pid_file_of_kemaris() {
        assert!(is_pid_file(b"4194305\n \n"));
        for text in ["4194305\n", "1", "", "12 apples\n \n", "+7\n \n", "\n \n", "7\n8\n \n"] {
            assert!(!is_pid_file(text.as_bytes()), "{text}");
        }
    }
}
