//! Ownership of files: the one place that decides whether kemari may write over an existing file.
//!
//! A file is kemari's if kemari made it (`O_EXCL`) and marked it, by an attribute of the file or by
//! its content. An empty file of another program stays that program's, since its owner may copy
//! data into it later. On a file system without attributes, only the content decides.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};

use crate::own_files::FileId;

/// The attribute of files that kemari has made. Its value is the purpose.
const ATTRIBUTE: &CStr = c"user.kemari";
/// Number of bytes at the beginning of a file that are read to decide who made it.
const HEAD: usize = 4096;
/// Number of attempts to open a file that other processes remove at the same time.
const ATTEMPTS: usize = 100;
/// How long to wait for another process's lock: longer than a [`look`] holds one.
const A_LOOK: Duration = Duration::from_millis(100);
/// Retry interval during [`A_LOOK`].
const AGAIN: Duration = Duration::from_millis(1);

/// Identifies files made for one purpose. Files of another purpose count as another program's.
#[derive(Clone, Copy, Debug)]
pub struct Sign {
    /// The value of the attribute.
    pub purpose: &'static str,
    /// Tells whether the first 4 KiB of a file are written only by kemari. `None` for files whose
    /// content a guest writes.
    pub content: Option<fn(&[u8]) -> bool>,
}

/// The program that made a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// This process, just now.
    New,
    /// An earlier kemari process.
    Kemari,
    /// Another program.
    Other,
}

/// A file that was opened to write to it, or to [look](look) at it.
#[derive(Debug)]
pub struct Opened {
    /// The file. A regular file stays locked while this value is kept.
    pub file: File,
    /// The program that made it.
    pub maker: Maker,
    /// Whether another process holds a lock, so that this process could not lock the file.
    pub is_busy: bool,
}

impl Opened {
    /// Whether another process uses the file. A process that only [looks](look) at it releases its
    /// lock within milliseconds. So this call waits for the lock for up to 100 ms, and keeps it
    /// when it gets it.
    #[must_use]
    pub fn is_anothers(&self) -> bool {
        let until = Instant::now() + A_LOOK;
        let mut busy = self.is_busy;
        while busy && Instant::now() < until {
            std::thread::sleep(AGAIN);
            busy = !lock(&self.file).unwrap_or(true);
        }
        busy
    }
}

/// Opens the file at `path`, or creates it. Its content is unchanged.
///
/// # Errors
/// When the system refuses.
pub fn open_or_make(path: &Path, options: &OpenOptions, sign: &Sign) -> io::Result<Opened> {
    for _ in 0..ATTEMPTS {
        let (file, is_new) = match options.clone().create_new(true).open(path) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match options.open(path) {
                Ok(file) => (file, false),
                Err(error) if error.kind() == ErrorKind::NotFound && !is_link(path) => continue,
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        };
        if is_new {
            mark(&file, sign);
        }
        let metadata = file.metadata()?;
        let is_busy = metadata.is_file() && !lock(&file)?;
        // The process that had the lock may have removed the file.
        if !fs::metadata(path).is_ok_and(|found| FileId::of(&found) == FileId::of(&metadata)) {
            continue;
        }
        let maker = match is_new {
            true => Maker::New,
            false => maker(path, &file, sign),
        };
        return Ok(Opened { file, maker, is_busy });
    }
    Err(io::Error::other("other processes keep replacing it"))
}

/// Opens the file at `path` for reading and finds its maker. Returns `None` if it cannot be opened.
/// Creates and changes nothing. The result holds a shared lock, so that other processes may look at
/// the file too.
#[must_use]
pub fn look(path: &Path, sign: &Sign) -> Option<Opened> {
    let file = reader(path).ok()?;
    let is_busy = !is_locked(file.try_lock_shared()).unwrap_or(true);
    Some(Opened { maker: maker(path, &file, sign), file, is_busy })
}

/// Finds the maker of a file. `path` leads to the file.
fn maker(path: &Path, file: &File, sign: &Sign) -> Maker {
    let is_ours = match sign.content {
        None => is_marked(file, sign),
        // The content counts more than the attribute: another file may have been copied over a file
        // of ours. An empty file with the attribute comes from a kemari that was killed before it
        // wrote anything.
        Some(content) => head(path, file)
            .is_some_and(|head| content(&head) || head.is_empty() && is_marked(file, sign)),
    };
    if is_ours { Maker::Kemari } else { Maker::Other }
}

fn head(path: &Path, file: &File) -> Option<Vec<u8>> {
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = vec![0; HEAD];
    // The file may be open for writing only.
    let read = file.read_at(&mut bytes, 0).or_else(|_| reader(path)?.read_at(&mut bytes, 0));
    bytes.truncate(read.ok()?);
    Some(bytes)
}

/// Opens a file for reading, without waiting on a FIFO.
fn reader(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

/// Locks the file for this process, and returns whether it did. On a file system without locks it
/// returns `true`: no other process can have a lock there.
fn lock(file: &File) -> io::Result<bool> {
    is_locked(file.try_lock())
}

fn is_locked(tried: Result<(), TryLockError>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOLCK | libc::EINVAL) => Ok(true),
            _ => Err(error),
        },
    }
}

/// Marks a file that this process has just created with its purpose.
fn mark(file: &File, sign: &Sign) {
    let value = sign.purpose.as_bytes();
    if let Err(error) = fsetxattr(file, ATTRIBUTE, value, XattrFlags::empty()) {
        log::debug!("cannot mark a file: {}", io::Error::from(error));
    }
}

fn is_marked(file: &File, sign: &Sign) -> bool {
    // Longer than any purpose: a longer value is an error, so it does not match.
    let mut found = [0_u8; 32];
    let length = fgetxattr(file, ATTRIBUTE, &mut found);
    length.is_ok_and(|length| found[..length] == *sign.purpose.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const SIGN: Sign = Sign { purpose: "test", content: None };
    const BY_CONTENT: Sign =
        Sign { content: Some(|head| head.starts_with(b"kemari-test")), ..SIGN };

    fn open_by(path: &Path, sign: &Sign) -> Opened {
        open_or_make(path, File::options().read(true).write(true), sign).unwrap()
    }

    fn open(path: &Path) -> Opened {
        open_by(path, &SIGN)
    }

    #[test]
    fn a_file_belongs_to_the_process_that_has_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        assert_eq!(open(&ours).maker, Maker::New);
        assert_eq!(open(&ours).maker, Maker::Kemari);
        let other = Sign { purpose: "another test", ..SIGN };
        assert_eq!(look(&ours, &other).unwrap().maker, Maker::Other);
        // An empty file is still another program's, which may fill it later.
        fs::write(&theirs, "").unwrap();
        for text in ["", "notes"] {
            fs::write(&theirs, text).unwrap();
            assert_eq!(open(&theirs).maker, Maker::Other);
            assert_eq!(open_by(&theirs, &BY_CONTENT).maker, Maker::Other);
        }
    }

    /// Fails if the attribute alone decides: it stays when another file is copied over this one.
    #[test]
    fn the_content_of_a_file_counts_more_than_its_maker() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(open_by(&path, &BY_CONTENT).maker, Maker::New);
        for (text, maker) in
            [("", Maker::Kemari), ("kemari-test 1", Maker::Kemari), ("notes", Maker::Other)]
        {
            fs::write(&path, text).unwrap();
            assert_eq!(open_by(&path, &BY_CONTENT).maker, maker, "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_file_that_another_has_open_is_busy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let first = open(&path);
        assert!(!first.is_busy && open(&path).is_busy && look(&path, &SIGN).unwrap().is_busy);
        drop(first);
        assert!(!open(&path).is_busy);
    }

    #[test]
    fn a_link_to_nothing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        let failed = open_or_make(&path, File::options().write(true), &SIGN).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::NotFound);
    }
}
