//! `--pid-file`: a file with this process's id, for as long as the process lives.
//!
//! A file that is there already is written over only if it is what a killed `kemari` leaves: the id
//! of a process that is gone, and nothing else. A `kemari` that runs keeps it locked.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use io_gate_host::own_files::{self, FileId, OwnName, PlaceError};

use super::CliError;

/// The digits of the largest id, and a line end.
const MAX_LENGTH: u64 = 11;
const EXPECTED: &str = "no file, or one that a kemari has left that is gone";

/// See the module.
pub(super) struct PidFile {
    // Given back while the file is open: its number is no other file's until then.
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
        let (mut file, is_new) = open(path).map_err(|error| refusal(path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(PlaceError::InUse { path: path.to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let metadata = file.metadata().map_err(failed)?;
        let taken = |found| PlaceError::Taken { path: path.to_owned(), expected: EXPECTED, found };
        if !metadata.is_file() || metadata.len() > MAX_LENGTH {
            return Err(taken(own_files::describe(&metadata)));
        }
        let mut text = String::new();
        (&mut file).take(MAX_LENGTH).read_to_string(&mut text).map_err(failed)?;
        if let Some(found) = still_of_use(&text).filter(|_| !is_new) {
            return Err(taken(found));
        }
        let name = OwnName::new(path, FileId::of(&metadata));
        file.rewind().and_then(|()| file.set_len(0)).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _name: name, _file: file })
    }
}

/// The file, and whether it was made just now. Never through a symbolic link: what it leads to has
/// another name, and another purpose.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            options.open(path).map(|file| (file, false))
        }
        made => made.map(|file| (file, true)),
    }
}

fn refusal(path: &Path, error: io::Error) -> PlaceError {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => PlaceError::Taken {
            path: path.to_owned(),
            expected: EXPECTED,
            found: own_files::describe(&found),
        },
        _ => PlaceError::Io { path: PathBuf::from(path), error },
    }
}

/// What a pid file holds, if that is not the id of a process that is gone.
fn still_of_use(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("an empty file".to_owned());
    }
    let digits = text.strip_suffix('\n').unwrap_or(text);
    let is_id = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse::<u32>() {
        // In a container every start may have the same id.
        Ok(id) if is_id && id == std::process::id() => None,
        Ok(id) if is_id && Path::new(&format!("/proc/{id}")).exists() => {
            Some(format!("the id of process {id}, which runs"))
        }
        Ok(_) if is_id => None,
        _ => Some("something else".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_of_no_use_is_written_over() {
        // Above the largest id that Linux gives (proc(5), pid_max).
        assert_eq!(still_of_use("4194305\n"), None);
        assert_eq!(still_of_use(&std::process::id().to_string()), None);
        for text in ["1\n", "", "12 apples", "+7\n", "-1\n", "\n", "7\n8\n", "99999999999"] {
            assert!(still_of_use(text).is_some(), "{text}");
        }
    }
}
