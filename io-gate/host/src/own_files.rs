//! Creates names in the file system for this process, and gives them back: it removes them.
//!
//! Invariant: kemari removes, empties and overwrites only files that it has made, whatever path an
//! operator gives. It leaves an existing name alone, unless the name is a socket that no process
//! has open: such a socket holds nothing. It gives a name back only if the name still leads to the
//! file that this process made, because that file may have been removed and replaced by another
//! one.
//!
//! All code of this product that creates, removes or renames a file does it here, unless
//! `docs/files.md` says why not.

use std::ffi::OsStr;
use std::fs::{self, File, FileType, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// The longest path of a Unix socket: its address has 108 bytes, including the final zero.
pub(crate) const MAX_SOCKET_PATH: usize = 107;
/// Suffix of an image's name for the sidecar of an own disk.
pub const SIDECAR_SUFFIX: &str = ".kemari";
/// Suffix of an image's name for its fence record.
pub const FENCE_SUFFIX: &str = ".kemari-fence";
/// Suffix for a primary's mark. A standby's mark has another suffix, so that neither side
/// overwrites the other's mark.
pub const MARK_SUFFIX: &str = ".kemari-mark";
/// Suffix for a standby's mark; see [`MARK_SUFFIX`].
pub const COUNTER_MARK_SUFFIX: &str = ".kemari-counter-mark";

/// Whether kemari uses such a name for a file that decides who may perform effects: the sidecars,
/// fence records and marks beside disks, and an arbiter's terms. Another file with such a name
/// would prevent kemari from creating its own, or kemari would read it as its own.
#[must_use]
pub fn is_name_of_record(path: &Path) -> bool {
    let Some(name) = path.file_name().map(OsStr::as_bytes) else { return false };
    let suffixes = [SIDECAR_SUFFIX, FENCE_SUFFIX, MARK_SUFFIX, COUNTER_MARK_SUFFIX];
    let of_a_disk = suffixes.iter().any(|suffix| name.ends_with(suffix.as_bytes()));
    let number = |name: &[u8]| !name.is_empty() && name.iter().all(u8::is_ascii_digit);
    let term = name.strip_prefix(b"term-").and_then(|name| name.strip_suffix(b".json"));
    let other = [&b"pace-"[..], b"ended-"].iter().find_map(|before| name.strip_prefix(*before));
    of_a_disk || term.or(other).is_some_and(number)
}

/// Whether this is the name of a fence record.
#[must_use]
pub fn is_name_of_fence(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().ends_with(FENCE_SUFFIX.as_bytes()))
}

/// Identifies a file by its device and inode, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The id of the file with this metadata.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Why a name could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The name belongs to a file that kemari has not made.
    #[error("{path}: expected {expected}, found {found}; it is left alone: choose another path")]
    Taken {
        /// The name.
        path: PathBuf,
        /// What is allowed there.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// A process uses the socket.
    #[error(
        "{path}: another process has this socket; look for it with `fuser -v {path}` and stop it first, or choose another path"
    )]
    InUse {
        /// The name.
        path: PathBuf,
    },
    /// The path is too long or empty for a socket.
    #[error(
        "{path}: expected the path of a socket, 1 to {MAX_SOCKET_PATH} bytes, found {found}; choose a shorter path"
    )]
    Length {
        /// The name.
        path: PathBuf,
        /// Its length in bytes.
        found: usize,
    },
    /// The system refused.
    #[error(
        "{path}: cannot create it: {error}; expected a name in a directory that exists and can be written to"
    )]
    Io {
        /// The name.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

/// A name that this process has made. It is given back when this value is dropped, or by
/// [`give_back_all`].
///
/// The file must stay open until then: otherwise another file may get its inode number.
#[derive(Debug)]
pub struct OwnName(u64);

/// The names to give back. The lock guards the list only and is never held across a system call.
/// Threads that run device code never take it (docs/threads.md).
static NAMES: Mutex<Names> = Mutex::new(Names { next: 0, names: Vec::new() });

struct Names {
    next: u64,
    names: Vec<(u64, PathBuf, FileId)>,
}

fn names() -> MutexGuard<'static, Names> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OwnName {
    /// Records that this process has made `path`, and that `path` leads to `file`.
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

/// Gives back every name: for the end of a process that does not drop what its threads share.
pub fn give_back_all() {
    let names = std::mem::take(&mut names().names);
    names.iter().for_each(|(_, path, file)| give_back(path, *file));
}

/// Removes `path` if it leads to `file`, which this process has made and has open.
pub fn give_back(path: &Path, file: FileId) {
    // A name that stays is harmless: the next kemari finds that no process uses it, and replaces
    // it.
    if let Err(error) = remove_if(path, file) {
        log::debug!("{}: cannot remove it: {error}", path.display());
    }
}

/// Creates a socket at `path` by calling `bind`. Replaces a socket that no process has open, and
/// leaves any other file alone.
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

/// Checks that a socket could be created at `path`. Changes nothing.
///
/// # Errors
/// See [`PlaceError`].
pub fn check_socket(path: &Path) -> Result<(), PlaceError> {
    check_place(path)?;
    match fs::symlink_metadata(path) {
        Ok(found) => dead_socket(path, &found).map(drop),
        Err(_) => Ok(()),
    }
}

/// Checks that a socket could be created at `path`, now or after its present owner has ended.
/// Changes nothing.
///
/// # Errors
/// See [`PlaceError`].
pub fn check_place(path: &Path) -> Result<(), PlaceError> {
    check_length(path)?;
    match fs::symlink_metadata(path) {
        Ok(found) => must_be_socket(path, &found),
        Err(_) => {
            check_directory(path).map_err(|error| PlaceError::Io { path: path.to_owned(), error })
        }
    }
}

/// Checks that the directory of a new name exists.
pub(crate) fn check_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match fs::metadata(parent.unwrap_or(Path::new("."))) {
        Ok(found) if !found.is_dir() => Err(io::ErrorKind::NotADirectory.into()),
        found => found.map(drop),
    }
}

/// Checks that a peer could listen at `path`, now or later. The path need not exist yet.
///
/// # Errors
/// See [`PlaceError`].
pub fn check_peer(path: &Path) -> Result<(), PlaceError> {
    check_length(path)?;
    match fs::metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(PlaceError::Taken {
            path: path.to_owned(),
            expected: "a socket, or nothing yet",
            found: describe(&found),
        }),
        _ => Ok(()),
    }
}

/// Checks the length of a socket's path.
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

/// Removes a socket that no process has open.
fn free(path: &Path) -> Result<(), PlaceError> {
    let failed = |error| PlaceError::Io { path: path.to_owned(), error };
    // Keep the file open, so that a file that takes its place does not get its inode number.
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let held = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        held => held.map_err(failed)?,
    };
    let file = dead_socket(path, &held.metadata().map_err(failed)?)?;
    let gone = remove_if(path, file).map(drop);
    gone.map_err(|error| {
        failed(io::Error::other(format!("cannot remove a socket that is not in use: {error}")))
    })
}

fn must_be_socket(path: &Path, found: &Metadata) -> Result<(), PlaceError> {
    match found.file_type().is_socket() {
        true => Ok(()),
        false => Err(PlaceError::Taken {
            path: path.to_owned(),
            expected: "no file, or a socket that is not in use",
            found: describe(found),
        }),
    }
}

fn dead_socket(path: &Path, found: &Metadata) -> Result<FileId, PlaceError> {
    must_be_socket(path, found)?;
    if has_process(path) {
        return Err(PlaceError::InUse { path: path.to_owned() });
    }
    Ok(FileId::of(found))
}

/// Whether a process has the socket open. The check connects a datagram socket to it. A stream
/// socket refuses that type without being disturbed, and a socket that does not listen yet is found
/// too.
fn has_process(path: &Path) -> bool {
    let asked = UnixDatagram::unbound().and_then(|asker| asker.connect(path));
    // Without the permission to connect, assume that a process is there.
    !asked.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Removes `path` if it leads to `file`, which the caller has open. Returns whether it did.
///
/// Another file may take the name between the check and the removal. So the file is first renamed
/// to a name that no other process uses, and checked again there. If the file system cannot rename
/// without replacing (NFS), the name stays.
fn remove_if(path: &Path, file: FileId) -> io::Result<bool> {
    let is_it = |at: &Path| fs::symlink_metadata(at).is_ok_and(|found| FileId::of(&found) == file);
    if !is_it(path) {
        return Ok(false);
    }
    let aside = set_aside(path)?;
    if is_it(&aside) {
        return fs::remove_file(&aside).map(|()| true);
    }
    rename_to_free(&aside, path).map(|()| false).inspect_err(|error| {
        let (path, aside) = (path.display(), aside.display());
        log::warn!("{path}: another file than kemari's had this name; it is now {aside}: {error}");
    })
}

/// Renames a file to an unused name in the same directory.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    at_unused_name(path, |aside| rename_to_free(path, aside)).map(|(aside, ())| aside)
}

/// Calls `take` with names beside `path` that no other process uses, until one is not taken.
fn at_unused_name<T>(
    path: &Path,
    take: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(PathBuf, T)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    /// Number of names to try: some may exist already.
    const ATTEMPTS: usize = 100;
    let mut result = Err(io::ErrorKind::AlreadyExists.into());
    for _ in 0..ATTEMPTS {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let aside = path.with_file_name(format!(".kemari-{}-{number}", std::process::id()));
        result = take(&aside).map(|taken| (aside, taken));
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
            break;
        }
    }
    result
}

/// A new file under a temporary name, until it is complete. Dropping it removes that name, so a
/// process that fails leaves nothing that could be taken for the complete file.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    path: PathBuf,
    place: PathBuf,
}

impl Draft {
    /// Of a file that is to be at `place`; `make` makes a file where there is none.
    pub(crate) fn of(place: &Path, make: impl Fn(&Path) -> io::Result<File>) -> io::Result<Self> {
        let (path, file) = at_unused_name(place, make)?;
        Ok(Self { file, path, place: place.to_owned() })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name; `sync` makes the directory durable. A file that has this name
    /// already stays.
    pub(crate) fn publish(self, sync: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        fs::hard_link(&self.path, &self.place)?;
        let directory = self.place.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync(directory.unwrap_or(Path::new("."))).inspect_err(|_| self.take_back())
    }

    fn take_back(&self) {
        if let Ok(made) = self.file.metadata() {
            give_back(&self.place, FileId::of(&made));
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // A name that stays does no harm: no process looks for it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Renames a file, unless `to` exists.
fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Describes a file for messages: `a directory`, `a regular file of 512 bytes`.
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

    /// Fails if a renamed file is removed without a second check.
    #[test]
    fn a_name_is_set_aside_where_nobody_else_has_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let others: Vec<_> = (0..50)
            .map(|n| dir.path().join(format!(".kemari-{}-{n}", std::process::id())))
            .collect();
        others.iter().for_each(|path| fs::write(path, "somebody else's").unwrap());
        let (socket, name) = listen(&path).unwrap();
        drop(name);
        assert!(!path.exists());
        // A name of maximum length leaves no room for a suffix.
        let long = dir.path().join("x".repeat(255));
        fs::write(&long, "ours").unwrap();
        let file = FileId::of(&fs::metadata(&long).unwrap());
        assert!(remove_if(&long, file).unwrap() && !long.exists());
        assert!(others.iter().all(|path| fs::read_to_string(path).unwrap() == "somebody else's"));
        drop(socket);
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
