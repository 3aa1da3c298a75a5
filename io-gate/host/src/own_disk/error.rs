//! Errors of the files of an own disk.

use std::io;
use std::path::PathBuf;

use crate::backend::disk::DiskError;

/// Why a file of an own disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OwnDiskError {
    /// The image cannot be opened as a disk.
    #[error(transparent)]
    Image(#[from] DiskError),
    /// There is no sidecar.
    #[error(
        "{path}: expected the sidecar of the image, found no file; make it: kemari disk init IMAGE"
    )]
    NoSidecar {
        /// Where it would be.
        path: PathBuf,
    },
    /// The name belongs to a file of another kind.
    #[error(
        "{path}: expected a sidecar, or no file, found {found}; it is left alone: give it another name"
    )]
    Taken {
        /// The name.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// Another process has the file locked.
    #[error(
        "{path}: another process uses it; look for a `kemari` with this disk (`fuser -v {path}`, `lslocks`), and stop it first"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file system cannot lock.
    #[error(
        "{path}: cannot lock it: {error}; an own disk needs a file system with locks: move the image and its sidecar"
    )]
    Lock {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// Another file has got the name since it was opened.
    #[error(
        "{path}: expected the file that was opened, found another one; nothing may replace it while it is in use"
    )]
    Replaced {
        /// The name.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{path}: cannot {what}: {error}; check the path, its permissions and its storage")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}
