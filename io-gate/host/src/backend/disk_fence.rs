//! The second line of fencing: a record beside a disk image of the term that may write to it (P2).
//!
//! The record is a file of one line next to the image, on the same storage, so that whoever reaches
//! the image reaches it. Whoever writes to the image reads it right before each system call that does,
//! and raises it to its own term when it has won a later one; a record of a later term than one's own
//! means that this machine has been succeeded, whatever its arbiter or its clock says. It is raised
//! before the first write of a term.
//!
//! What it does not do: between reading the record and the write that follows lies a window, of
//! microseconds unless the process is stopped exactly there, or the storage is slow to carry out a
//! write that it was given before. Only storage that refuses a fenced host (SCSI persistent
//! reservations, say) closes that one.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::disk::{DiskError, lock_waiting};
use crate::descriptors;
use crate::fence::Permission;
use crate::own_files;

/// What is appended to an image's name.
const SUFFIX: &str = ".kemari-fence";
const FORM: &str = "kemari-fence 1 MACHINE TERM .";
/// One sector: written at once.
const LENGTH: usize = 512;

/// See the module.
#[derive(Debug)]
pub struct DiskFence {
    file: File,
    path: PathBuf,
    machine: String,
}

/// Why the record cannot be used; it is looked at again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskFenceError {
    #[error("cannot {what} the fence record {path}: {error}")]
    Io { what: &'static str, path: PathBuf, error: io::Error },
    #[error(
        "the fence record {path}: expected `{FORM}`, found `{found}`; if no machine uses this disk, remove the file"
    )]
    Damaged { path: PathBuf, found: String },
    #[error(
        "{path}: expected a fence record, `{FORM}`, or no file, found {found}; it is left alone: choose another file with fence="
    )]
    NoRecord { path: PathBuf, found: String },
    #[error(
        "the fence record {path} is of machine `{found}`, this is `{expected}`; if the disk was moved for good, remove \
         the file"
    )]
    OtherMachine { path: PathBuf, expected: String, found: String },
}

impl DiskFence {
    /// The record's place for an image.
    #[must_use]
    pub fn beside(image: &Path) -> PathBuf {
        let mut name = image.as_os_str().to_owned();
        name.push(SUFFIX);
        name.into()
    }

    /// Opens or makes the record at `path`, for the virtual machine `machine`.
    ///
    /// # Errors
    /// When the file can neither be opened nor made, or is another machine's.
    pub fn open(path: &Path, machine: &str) -> Result<Self, DiskError> {
        let failed = |error| DiskError::Fence { path: path.to_owned(), error };
        let file = descriptors::fence_record(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            let (path, found) = (path.to_owned(), own_files::describe(&metadata));
            return Err(failed(io::Error::other(DiskFenceError::NoRecord { path, found })));
        }
        // Its name is to survive a power failure as the image's does.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        descriptors::sync_directory(dir.unwrap_or(Path::new("."))).map_err(failed)?;
        let fence = Self { file, path: path.to_owned(), machine: machine.to_owned() };
        fence.read().map_err(|error| failed(io::Error::other(error)))?;
        Ok(fence)
    }

    /// Whether a holder of `term` may write now; raises the record where it is of an earlier term.
    pub(crate) fn ask(&self, term: u64) -> Result<Permission, DiskFenceError> {
        match self.read()? {
            Some(found) if found == term => Ok(Permission::Granted),
            Some(found) if found > term => Ok(Permission::Lost),
            _ => self.raise(term),
        }
    }

    /// Writes `term`, under a lock where the file system has locks, so that of two winners the later
    /// stays. Where it has none, the arbiter's order stands alone.
    fn raise(&self, term: u64) -> Result<Permission, DiskFenceError> {
        let lock = lock_waiting(&self.file);
        if self.read()?.is_some_and(|found| found > term) {
            return Ok(Permission::Lost);
        }
        let mut record = format!("kemari-fence 1 {} {term} .\n", self.machine).into_bytes();
        record.resize(LENGTH, 0);
        let written = self.file.write_all_at(&record, 0).and_then(|()| self.file.sync_data());
        drop(lock);
        written.map_err(|error| self.failed("write", error))?;
        log::info!("fence record {}: raised to term {term}", self.path.display());
        Ok(Permission::Granted)
    }

    fn read(&self) -> Result<Option<u64>, DiskFenceError> {
        revalidate(&self.file).map_err(|error| self.failed("look at", error))?;
        let mut record = [0; LENGTH];
        let count =
            self.file.read_at(&mut record, 0).map_err(|error| self.failed("read", error))?;
        if count == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&record[..count]);
        let text = text.trim_end_matches('\0').trim_end();
        let words: Vec<&str> = text.split(' ').collect();
        match words.as_slice() {
            ["kemari-fence", "1", machine, term, "."] => {
                if *machine != self.machine {
                    return Err(DiskFenceError::OtherMachine {
                        path: self.path.clone(),
                        expected: self.machine.clone(),
                        found: (*machine).to_owned(),
                    });
                }
                term.parse().map(Some).map_err(|_| self.damaged(text))
            }
            ["kemari-fence", ..] => Err(self.damaged(text)),
            // Nothing of ours: the advice to remove it would be bad advice.
            _ => Err(DiskFenceError::NoRecord {
                path: self.path.clone(),
                found: "something else".to_owned(),
            }),
        }
    }

    fn damaged(&self, found: &str) -> DiskFenceError {
        let found = found.chars().take(80).collect();
        DiskFenceError::Damaged { path: self.path.clone(), found }
    }

    fn failed(&self, what: &'static str, error: io::Error) -> DiskFenceError {
        DiskFenceError::Io { what, path: self.path.clone(), error }
    }
}

/// Has a network file system ask its server whether the file has changed (statx(2),
/// `AT_STATX_FORCE_SYNC`): what it has cached of it is then read anew.
fn revalidate(file: &File) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `statx`: it is plain numbers.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_FORCE_SYNC;
    // SAFETY: the path is a C string, and `found` is valid for writes for the duration of the call.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_MTIME, &raw mut found)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn p2_a_later_term_shuts_out_the_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = DiskFence::beside(&dir.path().join("disk.img"));
        assert!(path.ends_with("disk.img.kemari-fence"));
        let (a, b) = (DiskFence::open(&path, "vm").unwrap(), DiskFence::open(&path, "vm").unwrap());
        assert_eq!(a.ask(1).unwrap(), Permission::Granted);
        assert_eq!(b.ask(2).unwrap(), Permission::Granted);
        assert_eq!(a.ask(1).unwrap(), Permission::Lost);
        assert_eq!(a.ask(3).unwrap(), Permission::Granted);
        assert_eq!(b.ask(2).unwrap(), Permission::Lost);
    }

    #[test]
    fn p2_of_winners_that_race_the_latest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        std::thread::scope(|scope| {
            for term in 1..20 {
                let fence = DiskFence::open(&path, "vm").unwrap();
                scope.spawn(move || fence.ask(term).unwrap());
            }
        });
        let fence = DiskFence::open(&path, "vm").unwrap();
        assert_eq!(fence.ask(18).unwrap(), Permission::Lost);
        assert_eq!(fence.ask(19).unwrap(), Permission::Granted);
    }

    #[test]
    fn a_record_that_is_damaged_or_anothers_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        DiskFence::open(&path, "one").unwrap().ask(7).unwrap();
        let refusal = DiskFence::open(&path, "two").unwrap_err().to_string();
        assert!(refusal.contains("machine `one`") && refusal.contains("remove"), "{refusal}");
        std::fs::write(&path, "kemari-fence 1 one 7").unwrap();
        let refusal = DiskFence::open(&path, "one").unwrap_err().to_string();
        assert!(refusal.contains("expected `kemari-fence 1"), "{refusal}");
    }
}
