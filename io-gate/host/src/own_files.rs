//! Names in the file system that this process makes: how they are taken, and how they are given back.
//!
//! Invariant: nothing that kemari has not made is removed, emptied or written over, whatever path an
//! operator gives. A name that is taken is left alone, unless it is that of a socket without a
//! process behind it, which holds nothing. A name is given back only while the file that was made is
//! still there: it may have been removed meanwhile, and another file may have come in its place.
//!
//! Whoever creates, removes or renames a file in this product does it here, or says in
//! `docs/files.md` why it need not.

use std::ffi::CString;
use std::fs::{self, File, FileType, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::descriptors::MAX_SOCKET_PATH;

/// Which file it is, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Of the file that this is of.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Why a name could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Something is there that is none of ours.
    #[error("{path}: expected {expected}, found {found}; it is left alone: choose another path")]
    Taken {
        /// The name.
        path: PathBuf,
        /// What may be there.
        expected: &'static str,
        /// What is.
        found: String,
    },
    /// A process has the socket.
    #[error(
        "{path}: another process has this socket; look for it with `fuser -v {path}` and stop it first, or choose another path"
    )]
    InUse {
        /// The name.
        path: PathBuf,
    },
    /// No socket can be called so.
    #[error(
        "{path}: expected the path of a socket, 1 to {MAX_SOCKET_PATH} bytes, found {found}; choose a shorter path"
    )]
    Length {
        /// The name.
        path: PathBuf,
        /// Its bytes.
        found: usize,
    },
    /// The system refuses.
    #[error(
        "{path}: cannot make it: {error}; expected a name in a directory that exists and can be written to"
    )]
    Io {
        /// The name.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

/// A name that this process has made. It is given back when this is dropped, or by [`give_back_all`].
///
/// Whatever was made has to be open until then: or its number may be another file's.
#[derive(Debug)]
pub struct OwnName(u64);

/// The names that are to be given back. Held for a look at the file system; nobody who runs device
/// code takes it (docs/threads.md).
static NAMES: Mutex<Names> = Mutex::new(Names { next: 0, names: Vec::new() });

struct Names {
    next: u64,
    names: Vec<(u64, PathBuf, FileId)>,
}

fn names() -> MutexGuard<'static, Names> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OwnName {
    /// Notes that this process has made `path`, which is `file`.
    #[must_use]
    pub fn new(path: &Path, file: FileId) -> Self {
        let mut names = names();
        names.next += 1;
        let number = names.next;
        names.names.push((number, path.to_owned(), file));
        Self(number)
    }
}

impl Drop for OwnName {
    fn drop(&mut self) {
        let mut names = names();
        if let Some(at) = names.names.iter().position(|(number, ..)| *number == self.0) {
            let (_, path, file) = names.names.swap_remove(at);
            drop(names);
            give_back(&path, file);
        }
    }
}

/// Gives back every name: for a process that ends, which does not drop what its threads share.
pub fn give_back_all() {
    let names = std::mem::take(&mut names().names);
    names.iter().for_each(|(_, path, file)| give_back(path, *file));
}

/// Removes `path` if it is `file`, which this process has made and has open.
pub fn give_back(path: &Path, file: FileId) {
    // A name that stays does no harm: the next process finds nobody behind it.
    if let Err(error) = remove_if(path, file) {
        log::debug!("{}: cannot remove it: {error}", path.display());
    }
}

/// Makes a socket at `path` by `bind`. One without a process behind it makes room; everything else
/// is left alone.
///
/// # Errors
/// See [`PlaceError`].
pub fn bind<S>(
    path: &Path,
    bind: impl Fn(&Path) -> io::Result<S>,
) -> Result<(S, OwnName), PlaceError> {
    check_length(path)?;
    let failed = |error| PlaceError::Io { path: path.to_owned(), error };
    let mut bound = bind(path);
    if is_taken(&bound) {
        free(path)?;
        bound = bind(path);
    }
    let socket = match bound {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            return Err(PlaceError::InUse { path: path.to_owned() });
        }
        other => other.map_err(failed)?,
    };
    let made = fs::symlink_metadata(path).map_err(failed)?;
    Ok((socket, OwnName::new(path, FileId::of(&made))))
}

/// Whether a socket could be made at `path`: changes nothing.
///
/// # Errors
/// See [`PlaceError`].
pub fn check_socket(path: &Path) -> Result<(), PlaceError> {
    check_length(path)?;
    match fs::symlink_metadata(path) {
        Ok(found) => dead_socket(path, &found).map(drop),
        Err(_) => Ok(()),
    }
}

/// Whether a socket can have this path.
///
/// # Errors
/// [`PlaceError::Length`].
pub fn check_length(path: &Path) -> Result<(), PlaceError> {
    let found = path.as_os_str().len();
    match found {
        1..=MAX_SOCKET_PATH => Ok(()),
        _ => Err(PlaceError::Length { path: path.to_owned(), found }),
    }
}

fn is_taken<S>(bound: &io::Result<S>) -> bool {
    bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Removes a socket that nobody is behind.
fn free(path: &Path) -> Result<(), PlaceError> {
    // Gone already: all the better.
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let file = dead_socket(path, &found)?;
    remove_if(path, file).map(drop).map_err(|error| PlaceError::Io { path: path.to_owned(), error })
}

fn dead_socket(path: &Path, found: &Metadata) -> Result<FileId, PlaceError> {
    if !found.file_type().is_socket() {
        return Err(PlaceError::Taken {
            path: path.to_owned(),
            expected: "no file, or a socket that nobody uses",
            found: describe(found),
        });
    }
    if has_process(path) {
        return Err(PlaceError::InUse { path: path.to_owned() });
    }
    Ok(FileId::of(found))
}

/// Whether a process is behind a socket. A datagram socket asks: one that takes connections refuses
/// it by its kind and is not disturbed, one that does not listen yet is seen as well.
fn has_process(path: &Path) -> bool {
    let asked = UnixDatagram::unbound().and_then(|asker| asker.connect(path));
    // Whoever may not ask cannot know that nobody is there.
    !asked.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Removes `path` if it is `file`. Whether it did.
///
/// Between a look and a removal another file may come in its place: so it is set aside first, and
/// looked at again where nobody else expects it.
fn remove_if(path: &Path, file: FileId) -> io::Result<bool> {
    let is_it = |at: &Path| fs::symlink_metadata(at).is_ok_and(|found| FileId::of(&found) == file);
    if !is_it(path) {
        return Ok(false);
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".kemari-{}", std::process::id()));
    let aside = PathBuf::from(aside);
    if rename_to_free(path, &aside).is_err() {
        // A file system that cannot (NFS), or a name that is too long: the look has to do.
        return fs::remove_file(path).map(|()| true);
    }
    if is_it(&aside) {
        return fs::remove_file(&aside).map(|()| true);
    }
    rename_to_free(&aside, path).map(|()| false)
}

/// Renames, unless there is something called `to`.
fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    let name = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
    let (from, to) = (name(from)?, name(to)?);
    // SAFETY: both paths are C strings that live through the call.
    let result = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The attribute of a file that says that kemari has made it, and that nobody else's bytes are in it.
const MARK: &std::ffi::CStr = c"user.kemari";

/// Notes on an empty file that what it will hold is kemari's. Where the file system has no
/// attributes, the file counts as somebody else's from then on.
pub(crate) fn mark(file: &File) {
    let made = b"made by kemari";
    // SAFETY: the name is a C string, and the pointer and the length describe `made`.
    let result = unsafe {
        libc::fsetxattr(file.as_raw_fd(), MARK.as_ptr(), made.as_ptr().cast(), made.len(), 0)
    };
    if result != 0 {
        log::debug!("a file cannot be marked: {}", io::Error::last_os_error());
    }
}

/// Whether a file was made by kemari, this process or an earlier one.
pub(crate) fn is_marked(file: &File) -> bool {
    // SAFETY: the name is a C string; without a buffer the length is told only.
    unsafe { libc::fgetxattr(file.as_raw_fd(), MARK.as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

/// What a file is, for messages: `a directory`, `a regular file of 512 bytes`.
#[must_use]
pub fn describe(metadata: &Metadata) -> String {
    let kind: FileType = metadata.file_type();
    if kind.is_file() {
        return format!("a regular file of {} bytes", metadata.len());
    }
    let kinds = [
        (kind.is_dir(), "a directory"),
        (kind.is_symlink(), "a symbolic link"),
        (kind.is_socket(), "a socket"),
        (kind.is_fifo(), "a FIFO"),
        (kind.is_block_device(), "a block device"),
        (kind.is_char_device(), "a character device"),
    ];
    let name = kinds.into_iter().find_map(|(is, name)| is.then_some(name));
    name.unwrap_or("something else").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::os::unix::net::UnixListener;

    use super::*;

    fn listen(path: &Path) -> Result<(UnixListener, OwnName), PlaceError> {
        bind(path, |path| UnixListener::bind(path))
    }

    #[test]
    fn a_name_is_given_back_once_and_only_if_it_is_still_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (socket, name) = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(PlaceError::InUse { .. })));
        drop(name);
        assert!(!path.exists());
        let (another, name) = listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), "somebody else's");
        assert!(matches!(listen(&path), Err(PlaceError::Taken { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
        drop((socket, another));
    }

    #[test]
    fn a_socket_without_a_process_makes_room_and_one_with_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        drop(listen(&path).unwrap());
        let datagrams = UnixDatagram::bind(&path).unwrap();
        assert!(matches!(listen(&path), Err(PlaceError::InUse { .. })));
        assert!(path.exists());
        drop(datagrams);
        assert!(listen(&path).is_ok());
        let long = dir.path().join("x".repeat(120));
        assert!(listen(&long).unwrap_err().to_string().contains("1 to 107 bytes"));
    }
}
