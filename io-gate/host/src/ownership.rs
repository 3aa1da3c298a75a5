//! Whose a file is: the one place where the product decides that it may write over what is there.
//!
//! A file is kemari's if kemari has made it (`O_EXCL`) and noted so, in an attribute of the file or in what it holds. An empty
//! file of somebody else's stays theirs: what they copy into it later is not to be lost. Where a file system has no
//! attributes, only what a file holds can tell.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::own_files::FileId;

/// The attribute of a file that kemari has made; its value says what for.
const ATTRIBUTE: &CStr = c"user.kemari";
/// How much of a file is read to see whose it is.
const HEAD: usize = 4096;
/// How often a file may be removed by others between two looks at it.
const ATTEMPTS: usize = 100;
/// Longer than a [`look`] of another process has a file locked.
const A_LOOK: Duration = Duration::from_millis(100);
/// How often to try again meanwhile.
const AGAIN: Duration = Duration::from_millis(1);

/// How the files that are made for one purpose are known. Those of another purpose are as good as somebody else's.
#[derive(Clone, Copy, Debug)]
pub struct Sign {
    /// The value of the attribute.
    pub purpose: &'static str,
    /// Whether the beginning of a file (4 KiB, or all of it) can only be kemari's; none where guests write what is in it.
    pub content: Option<fn(&[u8]) -> bool>,
}

/// Who has made a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// This process, just now.
    New,
    /// A kemari before.
    Kemari,
    /// Somebody else.
    Other,
}

/// A file that is open to be written to.
#[derive(Debug)]
pub struct Opened {
    /// It. Locked for as long as it is open, if it is a regular file.
    pub file: File,
    /// Who has made it.
    pub maker: Maker,
    /// Whether another process has locked it, so that it could not be.
    pub is_busy: bool,
}

impl Opened {
    /// Whether another process has it to itself: not one that only [looks](look) at it, which is over in a moment. It is locked
    /// else.
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

/// Opens the file at `path`, or makes it; nothing in it is changed.
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
        // Whoever had it locked may have removed it meanwhile.
        if !fs::metadata(path).is_ok_and(|found| FileId::of(&found) == FileId::of(&metadata)) {
            continue;
        }
        let maker = match is_new {
            true => Maker::New,
            false => maker(path, &file, sign),
        };
        return Ok(Opened { file, maker, is_busy });
    }
    Err(io::Error::other("other processes go on replacing it"))
}

/// Who has made the file that is at `path`, if there is one; nothing is made or changed. While the answer is kept, the file is
/// locked so that another may look as well.
#[must_use]
pub fn look(path: &Path, sign: &Sign) -> Option<Opened> {
    let file = reader(path).ok()?;
    let is_busy = !is_locked(file.try_lock_shared()).unwrap_or(true);
    Some(Opened { maker: maker(path, &file, sign), file, is_busy })
}

/// Whether kemari has made a file, this process or an earlier one; `path` leads to it.
fn maker(path: &Path, file: &File, sign: &Sign) -> Maker {
    let is_ours = match sign.content {
        None => is_marked(file, sign),
        // Whatever was copied into a file of ours has no sign. An empty one is of a process that was killed before it wrote.
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
    // It may be open to be written to only.
    let read = file.read_at(&mut bytes, 0).or_else(|_| reader(path)?.read_at(&mut bytes, 0));
    bytes.truncate(read.ok()?);
    Some(bytes)
}

/// A FIFO is not waited for.
fn reader(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

/// Whether it is locked by this process now. Where a file system has no locks, nobody else has one.
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

/// Notes on a file that this process has just made what it is for.
fn mark(file: &File, sign: &Sign) {
    let value = sign.purpose.as_bytes();
    // SAFETY: the name is a C string, and the pointer and the length describe `value`.
    let result = unsafe {
        let (file, name) = (file.as_raw_fd(), ATTRIBUTE.as_ptr());
        libc::fsetxattr(file, name, value.as_ptr().cast(), value.len(), 0)
    };
    if result != 0 {
        log::debug!("a file cannot be marked: {}", io::Error::last_os_error());
    }
}

fn is_marked(file: &File, sign: &Sign) -> bool {
    // One more than any purpose has: a longer value is another.
    let mut found = [0_u8; 32];
    // SAFETY: the name is a C string, and the pointer and the length describe `found`.
    let length = unsafe {
        let (file, name) = (file.as_raw_fd(), ATTRIBUTE.as_ptr());
        libc::fgetxattr(file, name, found.as_mut_ptr().cast(), found.len())
    };
    usize::try_from(length).is_ok_and(|length| found[..length] == *sign.purpose.as_bytes())
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
    fn a_file_is_of_whoever_has_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        assert_eq!(open(&ours).maker, Maker::New);
        assert_eq!(open(&ours).maker, Maker::Kemari);
        let other = Sign { purpose: "another test", ..SIGN };
        assert_eq!(look(&ours, &other).unwrap().maker, Maker::Other);
        // Empty, and still somebody else's: they may fill it later.
        fs::write(&theirs, "").unwrap();
        for text in ["", "notes"] {
            fs::write(&theirs, text).unwrap();
            assert_eq!(open(&theirs).maker, Maker::Other);
            assert_eq!(open_by(&theirs, &BY_CONTENT).maker, Maker::Other);
        }
    }

    /// Fails where the attribute alone counts: it stays when another file is copied over this one.
    #[test]
    fn what_a_file_holds_counts_more_than_who_has_made_it() {
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
