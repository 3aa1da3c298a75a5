//! Locks on a disk image: which other processes may have it open, on this host or on a host that
//! shares the storage.
//!
//! They are locks of the open file description (`F_OFD_SETLK`, fcntl(2)). A network file system
//! passes them to its server, and closing the descriptor releases them, so a killed machine leaves
//! none behind. No process waits for a lock on an image, because a stopped process keeps its locks.
//! The record beside the image decides which side of a pair may write ([`super::disk_fence`]).
//!
//! ```text
//!  bytes           0 ... LAST | READER | PAIR | ACTIVE | ...
//!  alone           write ------------------------------------     no other
//!  reader          read ---------------           read ------     readers
//!  pair            read -----            read            read     pair, active
//!  active          read -----            read     write  read     pair
//! ```
//!
//! The locks of a reader and of a member of a pair do not conflict. So each of them takes its own
//! locks and then checks that there is none of the other kind.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, StatxFlags, statx};

/// Offsets beyond the end of any image, and within the range that all systems support.
const READER: i64 = 1 << 62;
const PAIR: i64 = READER + 1;
const ACTIVE: i64 = READER + 2;
const AFTER: i64 = READER + 3;
/// Retry interval while waiting for a lock.
const AGAIN: Duration = Duration::from_millis(1);

/// How long to try to restore a former use after a change has failed.
const GOING_BACK: Duration = Duration::from_millis(100);

/// How a process uses an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It writes, and no other process uses the image.
    Alone,
    /// It only reads, and no process writes.
    Reader,
    /// It is a member of a pair whose other side uses the image too.
    Pair,
    /// It is the side of a pair that runs the guest.
    Active,
}

/// A range of bytes: the first one, and the one after the last. An end of 0 stands for all bytes
/// that follow.
type Bytes = (i64, i64);

/// The current use of an open image.
#[derive(Debug, Default)]
pub(crate) struct Lock {
    /// Held across the system calls that lock, which may be slow on a network file system. Only
    /// threads that change the use of the same image wait for it.
    used: Mutex<Option<Use>>,
}

impl Lock {
    /// Takes the locks of `of` on each of these files, which must be the same at each call. They
    /// replace the former locks.
    ///
    /// # Errors
    /// `WouldBlock` when another process has a conflicting lock. The files then keep their former
    /// locks.
    pub(crate) fn take(&self, files: &[&File], of: Use) -> io::Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, file) in files.iter().enumerate() {
            if let Err(error) = try_take(file, of) {
                files[..=at].iter().for_each(|file| go_back(file, *used));
                return Err(error);
            }
        }
        *used = Some(of);
        Ok(())
    }
}

/// Restores a file's former lock after another use has failed.
fn go_back(file: &File, former: Option<Use>) {
    let Some(former) = former else {
        // Closing the descriptor releases the lock at the latest.
        return drop(set(file, libc::F_OFD_SETLK, libc::F_UNLCK, (0, 0)));
    };
    let until = Instant::now() + GOING_BACK;
    while let Err(error) = try_take(file, former) {
        // Another process is checking whether it can have the image. It will find that it cannot:
        // enough of this side's locks are left for that.
        if !is_taken(&error) || Instant::now() >= until {
            return log::error!(
                "cannot take a disk's lock again for {former:?}: {error}: another process may find only a part of it \
                 locked"
            );
        }
        std::thread::sleep(AGAIN);
    }
}

fn try_take(file: &File, of: Use) -> io::Result<()> {
    let read = |bytes| set(file, libc::F_OFD_SETLK, libc::F_RDLCK, bytes);
    let write = |bytes| set(file, libc::F_OFD_SETLK, libc::F_WRLCK, bytes);
    let none = |bytes| set(file, libc::F_OFD_SETLK, libc::F_UNLCK, bytes);
    match of {
        Use::Alone => write((0, 0)),
        Use::Reader => {
            none((PAIR, ACTIVE))?;
            read((0, PAIR))?;
            read((ACTIVE, 0))?;
            check(file, (PAIR, ACTIVE))
        }
        Use::Pair | Use::Active => {
            // Take the most exclusive lock first, so that no other process can take its locks in
            // between.
            match of {
                Use::Active => write((ACTIVE, AFTER))?,
                _ => none((ACTIVE, AFTER))?,
            }
            read((PAIR, ACTIVE))?;
            read((0, READER))?;
            read((AFTER, 0))?;
            none((READER, PAIR))?;
            check(file, (READER, PAIR))
        }
    }
}

/// Checks that no other process has a lock on these bytes.
fn check(file: &File, bytes: Bytes) -> io::Result<()> {
    let mut found = flock(libc::F_WRLCK, bytes);
    // SAFETY: `found` is a valid `flock` for the duration of the call, and ours to write.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut found) };
    match result {
        0 if libc::c_int::from(found.l_type) == libc::F_UNLCK => Ok(()),
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(file: &File, command: libc::c_int, kind: libc::c_int, bytes: Bytes) -> io::Result<()> {
    let lock = flock(kind, bytes);
    // SAFETY: `lock` is a valid `flock` for the duration of the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn flock(kind: libc::c_int, (start, end): Bytes) -> libc::flock {
    // SAFETY: all-zero bytes are a valid `flock`: it is plain numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start;
    lock.l_len = if end == 0 { 0 } else { end - start };
    lock
}

/// Whether another process has a lock on the file.
pub(crate) fn is_locked_by_another(file: &File) -> bool {
    check(file, (0, 0)).is_err_and(|error| is_taken(&error))
}

/// Whether the error means that another process has the lock.
pub(crate) fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
        || error.kind() == io::ErrorKind::WouldBlock
}

/// A lock on a whole file. Dropping this releases it.
#[derive(Debug)]
pub(crate) struct Locked<'f>(&'f File);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Closing the descriptor releases the lock at the latest.
        let _ = set(self.0, libc::F_OFD_SETLK, libc::F_UNLCK, (0, 0));
    }
}

/// Another process has kept the file locked for the whole wait. It may be stopped.
#[derive(Debug)]
pub(crate) struct Taken;

/// Locks a whole file. Waits a limited time for another process that has it locked. Returns `None`
/// if the file system has no locks.
pub(crate) fn wait(file: &File, patience: Duration) -> Result<Option<Locked<'_>>, Taken> {
    let until = Instant::now() + patience;
    loop {
        match set(file, libc::F_OFD_SETLK, libc::F_WRLCK, (0, 0)) {
            Ok(()) => return Ok(Some(Locked(file))),
            Err(error) if is_taken(&error) && Instant::now() < until => std::thread::sleep(AGAIN),
            Err(error) if is_taken(&error) => return Err(Taken),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(None),
        }
    }
}

/// Makes a network file system ask its server whether the file has changed (statx(2),
/// `AT_STATX_FORCE_SYNC`), so that later reads do not use old cached data.
pub(crate) fn revalidate(file: &File) -> io::Result<()> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    statx(file, c"", flags, StatxFlags::MTIME)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const ALL: [Use; 4] = [Use::Alone, Use::Reader, Use::Pair, Use::Active];

    fn agree(one: Use, other: Use) -> bool {
        matches!(
            (one, other),
            (Use::Reader, Use::Reader)
                | (Use::Pair, Use::Pair | Use::Active)
                | (Use::Active, Use::Pair)
        )
    }

    fn take_new(file: &File, of: Use) -> io::Result<()> {
        Lock::default().take(&[file], of)
    }

    #[test]
    fn each_use_agrees_with_those_that_it_should() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(image.path()).unwrap();
        for one in ALL {
            for other in ALL {
                let (first, second) = (open(), open());
                take_new(&first, one).unwrap();
                let result = take_new(&second, other);
                assert_eq!(result.is_ok(), agree(one, other), "{one:?}, then {other:?}");
                assert!(
                    result.is_ok_and(|()| true) || is_taken(&take_new(&second, other).unwrap_err())
                );
                drop(first);
                take_new(&second, other).unwrap();
            }
        }
    }

    #[test]
    fn a_use_becomes_another_and_back() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(image.path()).unwrap();
        let (file, lock) = (open(), Lock::default());
        for one in ALL {
            for other in ALL {
                lock.take(&[&file], one).unwrap();
                lock.take(&[&file], other).unwrap();
                let another = open();
                let pair = take_new(&another, Use::Pair).is_ok();
                drop(another);
                assert_eq!(pair, matches!(other, Use::Pair | Use::Active), "{one:?}, {other:?}");
            }
        }
    }

    /// P2: a server may have dropped a lock while it heard nothing from this host (NFS). The lock
    /// is taken again before a standby joins. Fails if taking an unchanged use does nothing.
    #[test]
    fn a_lock_that_was_lost_is_taken_again() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(image.path()).unwrap();
        let (file, lock) = (open(), Lock::default());
        for of in ALL {
            lock.take(&[&file], of).unwrap();
            set(&file, libc::F_OFD_SETLK, libc::F_UNLCK, (0, 0)).unwrap();
            lock.take(&[&file], of).unwrap();
            assert!(is_taken(&take_new(&open(), Use::Alone).unwrap_err()), "{of:?}");
        }
    }

    /// Fails if a refused use loses the former one.
    #[test]
    fn a_use_that_cannot_be_had_leaves_the_former_one() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(image.path()).unwrap();
        let mut refused = 0;
        for one in ALL {
            for (beside, wanted) in ALL.into_iter().flat_map(|b| ALL.map(|wanted| (b, wanted))) {
                let ((file, lock), other) = ((open(), Lock::default()), open());
                lock.take(&[&file], one).unwrap();
                if take_new(&other, beside).is_err() || lock.take(&[&file], wanted).is_ok() {
                    continue;
                }
                refused += 1;
                drop(other);
                for next in ALL {
                    let case = format!("{one:?} beside {beside:?}, {wanted:?} refused; {next:?}");
                    assert_eq!(take_new(&open(), next).is_ok(), agree(one, next), "{case}");
                }
            }
        }
        assert!(refused > 4, "{refused}");
    }
}
