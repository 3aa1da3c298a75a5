//! Guest memory in a file that other processes may map, to inspect a guest that does not need to
//! survive its host.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::ownership::{Maker, Opened, Sign};
use crate::{descriptors, own_files};

/// Guest memory has arbitrary content, so the content does not identify the file.
const SIGN: Sign = Sign { purpose: "guest memory", content: None };

/// Why a file cannot hold guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFileError {
    /// The file cannot be opened, or cannot get the needed length.
    #[error("guest memory in {path}: {error}; change file= of --memory")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The file is not guest memory.
    #[error(
        "guest memory in {path}: expected a new file, an empty one, or kemari's own of {expected} bytes, found {found}; it is left alone: change file= of --memory"
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// Length of guest memory in bytes.
        expected: u64,
        /// What was found.
        found: String,
    },
    /// Another machine uses the file.
    #[error("guest memory in {path}: another process uses it; change file= of --memory")]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

/// Opens or creates a file of `bytes` zeros. The file stays locked while it is open.
///
/// # Errors
/// When the file exists and is not guest memory, or is in use.
pub fn memory_file(path: &Path, bytes: u64) -> Result<File, MemoryFileError> {
    let io = |error| MemoryFileError::Io { path: path.to_owned(), error };
    let other = |found| MemoryFileError::Other { path: path.to_owned(), expected: bytes, found };
    // Check by name: a socket cannot be opened.
    if let Ok(found) = std::fs::metadata(path)
        && !found.is_file()
    {
        return Err(other(own_files::describe(&found)));
    }
    let Opened { file, maker, is_busy } = descriptors::memory_file(path, &SIGN).map_err(io)?;
    if is_busy {
        return Err(MemoryFileError::Busy { path: path.to_owned() });
    }
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(other(own_files::describe(&metadata)));
    }
    match metadata.len() {
        0 => {}
        found if found != bytes => return Err(other(format!("{found} bytes"))),
        _ if maker == Maker::Other => {
            return Err(other("a file of that length that kemari did not make".to_owned()));
        }
        _ => {}
    }
    // Memory is zero at power-on: clear the memory of an earlier guest.
    file.set_len(0).and_then(|()| file.set_len(bytes)).map_err(io)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn only_what_was_guest_memory_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        let file = memory_file(&path, 8192).unwrap();
        assert!(matches!(memory_file(&path, 8192), Err(MemoryFileError::Busy { .. })));
        drop(file);
        std::fs::write(&path, [7; 8192]).unwrap();
        drop(memory_file(&path, 8192).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), [0; 8192]);
        let other = memory_file(&path, 4096).unwrap_err().to_string();
        assert!(other.contains("4096 bytes, found 8192"), "{other}");
        assert_eq!(std::fs::read(&path).unwrap().len(), 8192);
        assert!(matches!(memory_file(dir.path(), 4096), Err(MemoryFileError::Other { .. })));
        let others = dir.path().join("others");
        std::fs::write(&others, [7; 8192]).unwrap();
        let other = memory_file(&others, 8192).unwrap_err().to_string();
        assert!(other.contains("that kemari did not make"), "{other}");
        assert_eq!(std::fs::read(&others).unwrap(), [7; 8192]);
    }
}
