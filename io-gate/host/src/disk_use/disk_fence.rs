//! The second line of fencing: a record beside a disk image that names its writer and the writer's
//! term (P2).
//!
//! The record is a one-line file next to the image, on the same storage, so that every host that
//! reaches the image reaches the record. A writer reads the record right before each system call
//! that writes. If it has won a later term, it raises the record to its own term. A record of a
//! later term, or of the same term and another holder, means that another machine has replaced this
//! one, whatever its arbiter or its clock says. The record is raised before the first effect of a
//! term and freed when a machine ends in good order. Until then no other machine begins on the
//! image.
//!
//! Limit: there is a window between reading the record and the write that follows. It lasts
//! microseconds, unless the process is stopped exactly there or the storage is slow with an earlier
//! write. Only storage that refuses a fenced host (for instance SCSI persistent reservations)
//! closes this window.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::disk_error::DiskError;
use super::disk_lock::{self, Taken};
pub use super::fence_claim::FenceClaim;
use super::fence_claim::shortened;
use crate::descriptors;
use crate::fence::ANSWER_MAX_AGE;
use crate::own_files;

const FORM: &str = "kemari-fence 2 MACHINE TERM held|free SECONDS HOLDER .";
/// One sector, so that one write replaces the whole record.
const LENGTH: usize = 512;
/// How long to wait for a process that has the record locked, because that process may be stopped.
/// After that a successor writes without the lock.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);
/// How long a process that has raised the record waits before it acts. By then the answers that
/// others have read before are too old.
const SETTLE: Duration = Duration::from_millis(2);
// P2: a winner waits longer than the oldest answer that a loser may still act on.
const _: () = assert!(SETTLE.as_micros() > ANSWER_MAX_AGE.as_micros());

/// See the module.
#[derive(Debug)]
pub struct DiskFence {
    file: File,
    path: PathBuf,
    machine: String,
    /// The last term that this process has written, or has found as its own. 0 if there is none.
    raised: AtomicU64,
}

/// A record's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FenceAnswer {
    /// The record names this holder and term.
    Granted,
    /// The record names a later term, or another holder of this term.
    Lost(FenceClaim),
}

/// Why the record cannot be used. The process reads it again later.
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
        "the fence record {path} is of another machine, this is `{expected}`; it says: {found}; if the disk was moved for \
         good, remove the file"
    )]
    OtherMachine { path: PathBuf, expected: String, found: FenceClaim },
    #[error(
        "the fence record {path} is another file than this machine has opened: expected no replacement while the disk \
         is in use; end this machine, or put the file back"
    )]
    Replaced { path: PathBuf },
    #[error(
        "the fence record {path}: expected to lock it within {LOCK_PATIENCE:?}, found that {found}; `lslocks` names \
         the process that holds the lock on this host"
    )]
    Locked { path: PathBuf, found: &'static str },
}

impl DiskFence {
    /// The record's place for an image: beside the image itself, because each host may have its own
    /// symbolic link to the image.
    #[must_use]
    pub fn beside(image: &Path) -> PathBuf {
        let mut name =
            std::fs::canonicalize(image).unwrap_or_else(|_| image.to_owned()).into_os_string();
        name.push(own_files::FENCE_SUFFIX);
        name.into()
    }

    /// Reads the record at `path`. Returns `None` if there is no record yet, or an empty one.
    /// Writes nothing.
    ///
    /// # Errors
    /// When it cannot be read, or is not a fence record.
    pub fn look(path: &Path) -> Result<Option<FenceClaim>, DiskError> {
        let failed = |error| DiskError::Fence { path: path.to_owned(), error };
        match descriptors::fence_record_to_read(path) {
            Ok(file) => check_file(&file, path)
                .and_then(|()| read(&file, path))
                .map_err(|error| failed(io::Error::other(error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Opens or creates the record at `path`, for the virtual machine `machine`.
    ///
    /// # Errors
    /// When the file can be neither opened nor created, or another machine holds the disk.
    pub fn open(path: &Path, machine: &str) -> Result<Self, DiskError> {
        let failed = |error| DiskError::Fence { path: path.to_owned(), error };
        let file = descriptors::fence_record(path).map_err(failed)?;
        check_file(&file, path).map_err(|error| failed(io::Error::other(error)))?;
        // Make the record's name survive a power failure, as the image's name does.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        descriptors::sync_directory(dir.unwrap_or(Path::new("."))).map_err(failed)?;
        let (path, machine) = (path.to_owned(), machine.to_owned());
        let fence = Self { file, path, machine, raised: AtomicU64::new(0) };
        fence.read().map_err(|error| failed(io::Error::other(error)))?;
        Ok(fence)
    }

    /// Writes into the record that `holder` of `term` may write to the disk.
    ///
    /// # Errors
    /// When it cannot be written, or names another writer.
    pub fn claim(&self, term: u64, holder: &str) -> Result<(), DiskError> {
        match self.ask(term, holder) {
            Ok(FenceAnswer::Granted) => Ok(()),
            Ok(FenceAnswer::Lost(claim)) => {
                let path = self.path.clone();
                Err(DiskError::Held { record: path.clone(), path, claim: Box::new(claim) })
            }
            Err(error) => {
                Err(DiskError::Fence { path: self.path.clone(), error: io::Error::other(error) })
            }
        }
    }

    /// As [`claim`](Self::claim). Also rewrites the record with a later time, so that no earlier
    /// copy has the same content.
    ///
    /// # Errors
    /// As `claim`.
    pub fn renew(&self, term: u64, holder: &str) -> Result<(), DiskError> {
        self.claim(term, holder)?;
        let later = |found: &FenceClaim, ours: FenceClaim| FenceClaim {
            at: ours.at.max(found.at + 1),
            ..ours
        };
        self.rewrite(term, holder, later)
    }

    /// Whether `holder` of `term` may write now. Raises the record if it has an earlier term.
    pub(crate) fn ask(&self, term: u64, holder: &str) -> Result<FenceAnswer, DiskFenceError> {
        if self.is_replaced()? {
            return self.ask_replacement(term, holder);
        }
        match self.read()? {
            Some(found) if self.is_ours(&found, term, holder) => {
                self.raised.store(term, Ordering::Relaxed);
                Ok(FenceAnswer::Granted)
            }
            Some(found) if self.is_later(&found, term) => Ok(FenceAnswer::Lost(found)),
            _ => self.raise(term, holder),
        }
    }

    /// Frees the disk in the record, if `holder` is the last process that may write to it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn free(&self, term: u64, holder: &str) -> Result<(), DiskError> {
        // A holder that has won a term but written nothing in it has left an earlier term's record:
        // raise it first.
        let failed = |error| DiskError::Fence { path: self.path.clone(), error };
        let found = self.read().map_err(|error| failed(io::Error::other(error)))?;
        if found
            .is_some_and(|found| found.term < term && !found.free && found.machine == self.machine)
        {
            self.ask(term, holder).map_err(|error| failed(io::Error::other(error)))?;
        }
        self.rewrite(term, holder, |_, ours| FenceClaim { free: true, ..ours })
    }

    /// Rewrites the record with the result of `change`, if it belongs to `holder` of `term`.
    ///
    /// P2: a successor's record is never overwritten. A successor that finds the lock taken writes
    /// without it after [`LOCK_PATIENCE`]. So this process writes nothing if another one has the
    /// lock, or if [`LOCK_PATIENCE`] has passed (for instance because this process was stopped).
    fn rewrite(
        &self,
        term: u64,
        holder: &str,
        change: impl FnOnce(&FenceClaim, FenceClaim) -> FenceClaim,
    ) -> Result<(), DiskError> {
        // Take the time before the lock: a process that waits for this lock has waited at most
        // since then.
        let begun = Instant::now();
        let rewritten = || -> Result<(), DiskFenceError> {
            let locked = |found| DiskFenceError::Locked { path: self.path.clone(), found };
            let lock = disk_lock::wait(&self.file, LOCK_PATIENCE)
                .map_err(|Taken| locked("another process has it locked"))?;
            if let Some(found) = self.read()?.filter(|found| self.is_ours(found, term, holder)) {
                let claim = change(&found, self.claim_of(term, holder));
                if begun.elapsed() >= LOCK_PATIENCE {
                    return Err(locked("its storage or this process was too slow"));
                }
                self.write(&claim)?;
            }
            drop(lock);
            Ok(())
        };
        let failed = |error| DiskError::Fence { path: self.path.clone(), error };
        rewritten().map_err(|error| failed(io::Error::other(error)))
    }

    fn is_ours(&self, found: &FenceClaim, term: u64, holder: &str) -> bool {
        found.is_of(term, holder) && !found.free && found.machine == self.machine
    }

    /// P2: an equal term of another holder counts as a later one. Terms of another machine, which
    /// has freed the disk, do not count.
    fn is_later(&self, found: &FenceClaim, term: u64) -> bool {
        found.term >= term && found.machine == self.machine
    }

    fn claim_of(&self, term: u64, holder: &str) -> FenceClaim {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let holder = shortened(holder).to_owned();
        FenceClaim { machine: self.machine.clone(), term, holder, at, free: false }
    }

    /// Writes `term` under a lock, if the file system has locks, so that of two winners the later
    /// one stays. Without a lock, or if the lock's owner has stopped, the arbiter's order decides:
    /// a holder whose record is overwritten finds out at its next read.
    fn raise(&self, term: u64, holder: &str) -> Result<FenceAnswer, DiskFenceError> {
        let lock = disk_lock::wait(&self.file, LOCK_PATIENCE);
        let found = self.read()?;
        if let Some(found) = &found
            && self.is_later(found, term)
            && !self.is_ours(found, term, holder)
        {
            return Ok(FenceAnswer::Lost(found.clone()));
        }
        self.write(&self.claim_of(term, holder))?;
        drop(lock);
        self.raised.store(term, Ordering::Relaxed);
        log::info!("fence record {}: raised to term {term}", self.path.display());
        if found.is_some_and(|found| !found.free && found.holder != shortened(holder)) {
            std::thread::sleep(SETTLE);
        }
        Ok(FenceAnswer::Granted)
    }

    fn write(&self, claim: &FenceClaim) -> Result<(), DiskFenceError> {
        let FenceClaim { machine, term, holder, at, free } = claim;
        let state = if *free { "free" } else { "held" };
        let mut record =
            format!("kemari-fence 2 {machine} {term} {state} {at} {holder} .\n").into_bytes();
        record.resize(LENGTH.max(record.len()), 0);
        let written = self.file.write_all_at(&record, 0).and_then(|()| self.file.sync_data());
        written.map_err(|error| failed(&self.path, "write", error))
    }

    fn read(&self) -> Result<Option<FenceClaim>, DiskFenceError> {
        let found = read(&self.file, &self.path)?;
        match found {
            Some(found) if found.machine != self.machine && !found.free => {
                let (path, expected) = (self.path.clone(), self.machine.clone());
                Err(DiskFenceError::OtherMachine { path, expected, found })
            }
            // This process has written the record before, and the content is gone.
            None if self.raised.load(Ordering::Relaxed) > 0 => Err(damaged(&self.path, "")),
            found => Ok(found),
        }
    }

    /// Whether another file has replaced the record, for instance a restored copy. A removed record
    /// does not count: all processes that have the open one still share it.
    fn is_replaced(&self) -> Result<bool, DiskFenceError> {
        let failed = |error| failed(&self.path, "look at", error);
        let ours = self.file.metadata().map_err(failed)?;
        match std::fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) != (ours.dev(), ours.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Only reads the replacement. All that this machine may learn from it is that another one has
    /// replaced this machine.
    fn ask_replacement(&self, term: u64, holder: &str) -> Result<FenceAnswer, DiskFenceError> {
        let path = &self.path;
        let file =
            descriptors::fence_record_to_read(path).map_err(|error| failed(path, "open", error))?;
        match read(&file, path)? {
            Some(found) if self.is_later(&found, term) && !self.is_ours(&found, term, holder) => {
                Ok(FenceAnswer::Lost(found))
            }
            _ => Err(DiskFenceError::Replaced { path: path.clone() }),
        }
    }
}

fn check_file(file: &File, path: &Path) -> Result<(), DiskFenceError> {
    let metadata = file.metadata().map_err(|error| failed(path, "look at", error))?;
    if metadata.is_file() {
        return Ok(());
    }
    let (path, found) = (path.to_owned(), own_files::describe(&metadata));
    Err(DiskFenceError::NoRecord { path, found })
}

fn read(file: &File, path: &Path) -> Result<Option<FenceClaim>, DiskFenceError> {
    disk_lock::revalidate(file).map_err(|error| failed(path, "look at", error))?;
    let mut record = [0; LENGTH];
    let count = file.read_at(&mut record, 0).map_err(|error| failed(path, "read", error))?;
    if count == 0 {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&record[..count]);
    let text = text.trim_end_matches('\0').trim_end();
    match parse(text) {
        Some(claim) => Ok(Some(claim)),
        None if text.starts_with("kemari-fence ") => Err(damaged(path, text)),
        // The file is not kemari's: do not advise removing it.
        None => {
            let (path, found) = (path.to_owned(), "something else".to_owned());
            Err(DiskFenceError::NoRecord { path, found })
        }
    }
}

fn parse(text: &str) -> Option<FenceClaim> {
    let text = text.strip_prefix("kemari-fence ")?.strip_suffix(" .")?;
    let words: Vec<&str> = text.splitn(6, ' ').collect();
    let claim = |machine: &str, term: &str| {
        let (machine, holder) = (machine.to_owned(), String::new());
        Some(FenceClaim { machine, term: term.parse().ok()?, holder, at: 0, free: false })
    };
    match words.as_slice() {
        ["1", machine, term] => claim(machine, term),
        ["2", machine, term, state @ ("held" | "free"), at, holder] => {
            let (at, free) = (at.parse().ok()?, *state == "free");
            Some(FenceClaim { at, free, holder: (*holder).to_owned(), ..claim(machine, term)? })
        }
        _ => None,
    }
}

fn damaged(path: &Path, found: &str) -> DiskFenceError {
    let found =
        if found.is_empty() { "nothing".to_owned() } else { found.chars().take(80).collect() };
    DiskFenceError::Damaged { path: path.to_owned(), found }
}

fn failed(path: &Path, what: &'static str, error: io::Error) -> DiskFenceError {
    DiskFenceError::Io { what, path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn granted(fence: &DiskFence, term: u64, holder: &str) -> bool {
        fence.ask(term, holder).unwrap() == FenceAnswer::Granted
    }

    #[test]
    fn p2_a_later_term_shuts_out_the_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = DiskFence::beside(&dir.path().join("disk.img"));
        assert!(path.ends_with("disk.img.kemari-fence"));
        let (a, b) = (DiskFence::open(&path, "vm").unwrap(), DiskFence::open(&path, "vm").unwrap());
        assert!(granted(&a, 1, "a"));
        assert!(granted(&b, 2, "b"));
        assert!(!granted(&a, 1, "a"));
        assert!(granted(&a, 3, "a"));
        assert!(!granted(&b, 2, "b"));
    }

    /// P2: two arbiters, or one with restored older data, grant the same term twice.
    #[test]
    fn p2_an_equal_term_of_another_holder_is_never_granted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        let (a, b) = (DiskFence::open(&path, "vm").unwrap(), DiskFence::open(&path, "vm").unwrap());
        assert!(granted(&a, 2, "a (pid 1)"));
        let FenceAnswer::Lost(claim) = b.ask(2, "b (pid 2)").unwrap() else {
            panic!("granted twice")
        };
        assert_eq!((claim.term, claim.holder.as_str()), (2, "a (pid 1)"));
        assert!(granted(&a, 2, "a (pid 1)"));
    }

    #[test]
    fn p2_of_winners_that_race_the_latest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        std::thread::scope(|scope| {
            for term in 1..20 {
                let fence = DiskFence::open(&path, "vm").unwrap();
                scope.spawn(move || fence.ask(term, "one").unwrap());
            }
        });
        let fence = DiskFence::open(&path, "vm").unwrap();
        assert!(!granted(&fence, 18, "one"));
        assert!(granted(&fence, 19, "one"));
    }

    /// P2: of several holders that race with the same term, one is granted.
    #[test]
    fn p2_of_holders_of_one_term_that_race_one_is_granted() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("fence");
            let start = std::sync::Barrier::new(4);
            let granted: usize = std::thread::scope(|scope| {
                let asking: Vec<_> = (0..4)
                    .map(|n| {
                        let (path, start) = (&path, &start);
                        scope.spawn(move || {
                            let fence = DiskFence::open(path, "vm").unwrap();
                            start.wait();
                            usize::from(granted(&fence, 2, &format!("h{n}")))
                        })
                    })
                    .collect();
                asking.into_iter().map(|asked| asked.join().unwrap()).sum()
            });
            assert_eq!(granted, 1);
        }
    }

    #[test]
    fn a_record_that_is_damaged_or_anothers_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        DiskFence::open(&path, "one").unwrap().ask(7, "a").unwrap();
        let refusal = DiskFence::open(&path, "two").unwrap_err().to_string();
        assert!(refusal.contains("machine `one`") && refusal.contains("remove"), "{refusal}");
        assert!(refusal.contains("held by a since 20"), "{refusal}");
        std::fs::write(&path, "kemari-fence 2 one 7").unwrap();
        let refusal = DiskFence::open(&path, "one").unwrap_err().to_string();
        assert!(refusal.contains("expected `kemari-fence 2"), "{refusal}");
    }

    /// P2: the written record is gone, and a successor's record with it.
    #[test]
    fn a_record_that_is_emptied_or_replaced_while_it_is_in_use_grants_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("fence"), dir.path().join("copy"));
        let a = DiskFence::open(&path, "vm").unwrap();
        assert!(granted(&a, 1, "a"));
        let written = std::fs::read(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(a.ask(1, "a").unwrap_err().to_string().contains("found `nothing`"));
        std::fs::write(&path, &written).unwrap();
        assert!(granted(&a, 1, "a"));
        // The replacement was copied with the image. A process that opens it does not share it with
        // those that have the former one open.
        std::fs::write(&copy, &written).unwrap();
        std::fs::rename(&copy, &path).unwrap();
        assert!(a.ask(1, "a").unwrap_err().to_string().contains("another file"));
        let b = DiskFence::open(&path, "vm").unwrap();
        assert!(granted(&b, 2, "b"));
        assert!(!granted(&a, 1, "a"));
    }

    #[test]
    fn a_disk_that_was_given_up_is_anybodys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        let a = DiskFence::open(&path, "one").unwrap();
        assert!(granted(&a, 7, "a"));
        a.free(6, "a").unwrap();
        a.free(7, "b").unwrap();
        assert!(!DiskFence::look(&path).unwrap().unwrap().free, "not theirs to free");
        a.free(7, "a").unwrap();
        assert!(DiskFence::look(&path).unwrap().unwrap().free);
        assert!(!granted(&a, 7, "a"), "what was given up is not taken back");
        assert!(granted(&DiskFence::open(&path, "two").unwrap(), 1, "b"));
    }

    /// P2, P7: a process that was stopped with the record locked does not stop its successor.
    #[test]
    fn a_lock_that_is_never_given_back_does_not_hold_a_successor_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        let (a, b) = (DiskFence::open(&path, "vm").unwrap(), DiskFence::open(&path, "vm").unwrap());
        let _stopped = disk_lock::wait(&a.file, LOCK_PATIENCE);
        assert!(granted(&b, 2, "b"));
    }

    /// P2: the process that has the record locked may be a successor that is about to write.
    #[test]
    fn p2_a_record_that_another_has_locked_is_neither_renewed_nor_freed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        let (a, b) = (DiskFence::open(&path, "vm").unwrap(), DiskFence::open(&path, "vm").unwrap());
        assert!(granted(&a, 1, "a"));
        let written = std::fs::read(&path).unwrap();
        let locked = disk_lock::wait(&b.file, LOCK_PATIENCE);
        for refused in [a.renew(1, "a"), a.free(1, "a")] {
            let refusal = refused.unwrap_err().to_string();
            assert!(refusal.contains("another process has it locked"), "{refusal}");
            assert!(std::fs::read(&path).unwrap() == written, "{refusal}");
        }
        drop(locked);
        a.renew(1, "a").unwrap();
        assert!(std::fs::read(&path).unwrap() != written);
        a.free(1, "a").unwrap();
    }

    /// P2: the process is stopped between its read and its write, for as long as a successor waits.
    #[test]
    fn p2_a_process_that_was_stopped_with_the_lock_does_not_write_over_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        let (a, b) = (DiskFence::open(&path, "vm").unwrap(), DiskFence::open(&path, "vm").unwrap());
        assert!(granted(&a, 1, "a"));
        let stopped = |_: &FenceClaim, ours: FenceClaim| {
            assert!(granted(&b, 2, "b"));
            ours
        };
        let refusal = a.rewrite(1, "a", stopped).unwrap_err().to_string();
        assert!(refusal.contains("too slow"), "{refusal}");
        assert!(!granted(&a, 1, "a") && granted(&b, 2, "b"));
    }

    #[test]
    fn a_record_of_an_earlier_release_is_understood_and_names_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        std::fs::write(&path, "kemari-fence 1 vm 7 .\n").unwrap();
        let fence = DiskFence::open(&path, "vm").unwrap();
        assert!(!granted(&fence, 7, "a"));
        assert!(granted(&fence, 8, "a"));
    }
}
