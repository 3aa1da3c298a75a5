//! A raw disk: a file or a block device, read and written by one thread.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use io_gate::Outcome;
use rustix::fs::{Advice, FallocateFlags, fadvise};

use super::direct::Direct;
pub use super::sector::SECTOR;
use crate::descriptors;
pub use crate::disk_use::disk_error::DiskError;
use crate::disk_use::disk_fence::DiskFence;
use crate::disk_use::disk_lock::{self, Lock, Use};
use crate::out::{self, Outgoing, Refused, Released, Target, with_permits};
use crate::own_files::{self, FileId};
use crate::permit::May;

/// `VIRTIO_BLK_F_FLUSH` (5.2.3).
const F_FLUSH: u64 = 1 << 9;
/// How long another process may make the same check of a device as this one, and the interval
/// between two attempts.
const OTHERS_LOOK: Duration = Duration::from_millis(100);
const AGAIN: Duration = Duration::from_millis(5);

/// How a disk is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// Never write to the disk.
    pub read_only: bool,
    /// Take a lock, so that no two machines use the disk. For writing, it excludes all others; for
    /// reading, it excludes writers.
    pub lock: bool,
    /// A write completes when it is in the storage. Otherwise it completes in this host's page
    /// cache, which is lost with the host.
    pub write_through: bool,
    /// Read and write past the host's page cache (`O_DIRECT`).
    pub direct: bool,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    file: Arc<File>,
    path: PathBuf,
    sectors: u64,
    read_only: bool,
    /// Whether the file was opened so that each write is durable (`O_DSYNC`).
    opened_through: bool,
    /// Whether each write must be durable. May be set while the disk is in use.
    write_through: bool,
    /// Whether the guest's driver flushes. If not, completed writes must be stable (virtio 1.2,
    /// 5.2.6.2). A driver counts as one that does not, until it has accepted the flush feature.
    driver_flushes: Arc<AtomicBool>,
    direct: Option<Direct>,
    fence: Option<Arc<DiskFence>>,
    lock: Arc<Lock>,
    /// The second file that is locked for a block device.
    lock_file: Option<Arc<File>>,
}

/// The part of a disk that threads other than its lane use.
pub(crate) struct Input {
    driver_flushes: Arc<AtomicBool>,
    file: Arc<File>,
    path: PathBuf,
    read_only: bool,
    fence: Option<Arc<DiskFence>>,
    lock: Arc<Lock>,
    lock_file: Option<Arc<File>>,
}

/// The role of this process for a disk that it shares with another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side of a pair that has run the guest from its start.
    Active,
    /// The side of a pair that continues a guest, or gets a new standby. The other side may be
    /// stopped and still have the disk locked.
    Successor,
    /// A standby.
    Standby,
}

impl Input {
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn fence(&self) -> Option<&Arc<DiskFence>> {
        self.fence.as_ref()
    }

    /// Sets the features that the guest's driver has accepted.
    pub(crate) fn negotiated(&self, features: u64) {
        self.driver_flushes.store(features & F_FLUSH != 0, Ordering::Release);
    }

    /// Changes the lock of the image to this use.
    pub(crate) fn lock(&self, of: Use) -> Result<(), DiskError> {
        let of = if self.read_only { Use::Reader } else { of };
        lock(&self.lock, &locked(&self.file, self.lock_file.as_deref()), &self.path, of)
    }

    /// See [`Disk::share`].
    pub(crate) fn share(&self, side: Side, has_terms: bool) -> Result<(), DiskError> {
        let locked = match side {
            Side::Active => self.lock(Use::Active),
            Side::Successor => self.lock(Use::Active).or_else(|_| {
                self.lock(Use::Pair).inspect(|()| {
                    log::info!(
                        "disk {}: another process has it open, perhaps the former primary; this machine does not wait \
                         for it, as the term decides who writes",
                        self.path.display()
                    );
                })
            }),
            Side::Standby => self.lock(Use::Pair),
        };
        match locked {
            Err(error @ DiskError::Lock { .. }) if has_terms => {
                log::warn!("{error}; only the record beside it keeps other machines from writing");
                Ok(())
            }
            locked => locked,
        }
    }
}

impl Disk {
    /// Checks that the file at `path`, if there is one, has the kind and size of a disk. Opens
    /// nothing.
    ///
    /// # Errors
    /// When the kind or the size is wrong.
    pub fn check_kind(path: &Path) -> Result<(), DiskError> {
        let Ok(found) = std::fs::metadata(path) else { return Ok(()) };
        match other_kind(path, &found) {
            Some(other) => Err(other),
            None if found.is_file() && found.len() < SECTOR => {
                Err(DiskError::Empty { path: path.to_owned(), bytes: found.len() })
            }
            None => Ok(()),
        }
    }

    /// Opens a raw image or a block device.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, options: DiskOptions) -> Result<Self, DiskError> {
        let DiskOptions { read_only, write_through, direct, .. } = options;
        let failed = |error| DiskError::Open { path: path.to_owned(), error };
        let not_direct = |error| DiskError::Direct { path: path.to_owned(), error };
        let mut file =
            descriptors::disk(path, read_only, write_through, direct).map_err(|error| {
                // EINVAL is the error of a file system without O_DIRECT (open(2)).
                let refused = direct && error.raw_os_error() == Some(libc::EINVAL);
                let other = std::fs::metadata(path).ok().and_then(|found| other_kind(path, &found));
                other.unwrap_or_else(|| if refused { not_direct(error) } else { failed(error) })
            })?;
        let metadata = file.metadata().map_err(failed)?;
        if let Some(other) = other_kind(path, &metadata) {
            return Err(other);
        }
        let is_device = is_block_device(metadata.file_type());
        if is_device && !read_only {
            check_unused(path)?;
        }
        let lock_file = if is_device { lock_of_device(&file, path, read_only) } else { None };
        let lock_of_it = Lock::default();
        if options.lock {
            let of = if options.read_only { Use::Reader } else { Use::Alone };
            lock(&lock_of_it, &locked(&file, lock_file.as_ref()), path, of)?;
        }
        // The metadata of a block device has no length.
        let bytes = file.seek(SeekFrom::End(0)).map_err(|_| DiskError::Kind {
            path: path.to_owned(),
            found: "a file without a size, like those in /proc".to_owned(),
        })?;
        if bytes < SECTOR {
            return Err(DiskError::Empty { path: path.to_owned(), bytes });
        }
        let sectors = bytes / SECTOR;
        let direct = direct.then(|| Direct::of(&file)).transpose().map_err(not_direct)?;
        if let Some(block) = direct.as_ref().map(Direct::block)
            && !bytes.is_multiple_of(block)
        {
            return Err(DiskError::Blocks { path: path.to_owned(), block, bytes });
        }
        let path = path.to_owned();
        let driver_flushes = Arc::new(AtomicBool::new(false));
        let (file, opened_through) = (Arc::new(file), write_through);
        Ok(Self {
            file,
            path,
            sectors,
            read_only,
            opened_through,
            write_through,
            driver_flushes,
            direct,
            fence: None,
            lock: Arc::new(lock_of_it),
            lock_file: lock_file.map(Arc::new),
        })
    }

    /// Another handle of the same open file, without a fence record. The lock stays as long as any
    /// of the handles exists.
    ///
    /// # Errors
    /// When the disk's size has changed, or cannot be read.
    pub fn again(&self) -> Result<Self, DiskError> {
        let failed = |error| DiskError::Open { path: self.path.clone(), error };
        let found = (&*self.file).seek(SeekFrom::End(0)).map_err(failed)?;
        if found / SECTOR != self.sectors {
            let (path, expected) = (self.path.clone(), self.sectors * SECTOR);
            return Err(DiskError::Resized { path, expected, found });
        }
        let direct = self.direct.as_ref().map(|_| Direct::of(&self.file)).transpose();
        Ok(Self {
            file: self.file.clone(),
            path: self.path.clone(),
            sectors: self.sectors,
            read_only: self.read_only,
            opened_through: self.opened_through,
            write_through: self.write_through,
            driver_flushes: self.driver_flushes.clone(),
            direct: direct.map_err(failed)?,
            fence: None,
            lock: self.lock.clone(),
            lock_file: self.lock_file.clone(),
        })
    }

    /// Sets the record of who may write to the disk.
    #[must_use]
    pub fn fenced_by(mut self, fence: DiskFence) -> Self {
        self.fence = Some(Arc::new(fence));
        self
    }

    pub(crate) fn fence(&self) -> Option<&Arc<DiskFence>> {
        self.fence.as_ref()
    }

    /// The open file, for an own disk.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Changes the lock of the image to this use.
    ///
    /// # Errors
    /// When another process uses the image in a conflicting way. The former lock then stays.
    pub fn lock(&self, of: Use) -> Result<(), DiskError> {
        self.input().lock(of)
    }

    /// P3: drops this host's cached data of a block device, once. Another host may have written to
    /// the device since then, and the kernel does not learn of that. For a file, the file system
    /// keeps the cache valid.
    pub fn forget_cached(&self) {
        if !self.file.metadata().is_ok_and(|metadata| is_block_device(metadata.file_type())) {
            return;
        }
        if let Err(error) = fadvise(&*self.file, 0, None, Advice::DontNeed) {
            let error = io::Error::from(error);
            log::warn!("disk {}: cannot drop its page cache: {error}", self.path.display());
        }
    }

    /// Locks a disk that another host uses too. A side that continues a guest does not wait for the
    /// lock of the pair's other side: it has won the term, and the record beside the disk keeps the
    /// other side from writing. A machine outside of a pair has no terms and must end first. With
    /// terms, a file system without locks is acceptable too.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn share(&self, side: Side, has_terms: bool) -> Result<(), DiskError> {
        self.input().share(side, has_terms)
    }

    /// P3: makes all earlier writes durable before it returns, and from then on each write when it
    /// completes. Called by the lane, with no write under way.
    pub(crate) fn write_through_from_now_on(&mut self, may: May<'_>) -> Result<(), Refused> {
        if self.read_only || self.write_through {
            return Ok(());
        }
        self.write_through = true;
        let synced = self.flush(may);
        // After a failure, the next call tries again.
        self.write_through = synced.is_ok();
        synced
    }

    /// The file to write to, and whether each write must be made durable.
    fn target(&self) -> Target<'_> {
        Target { file: &self.file, durably: self.write_through && !self.opened_through }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a write is durable when it completes, since the driver cannot flush (virtio 1.2,
    /// 5.2.6.2).
    pub(super) fn completes_durably(&self) -> bool {
        !self.driver_flushes.load(Ordering::Acquire)
    }

    /// The disk's size in sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The block size of the storage, if the disk uses direct I/O.
    #[must_use]
    pub fn direct_block(&self) -> Option<u64> {
        self.direct.as_ref().map(Direct::block)
    }

    /// Whether the disk is opened read-only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn read(&self, sector: u64, into: &mut [u8]) -> io::Result<()> {
        let at = self.range(sector, into.len() as u64)?;
        match &self.direct {
            Some(direct) => direct.read(&self.file, at, into),
            None => self.file.read_exact_at(into, at),
        }
    }

    pub(crate) fn write(
        &self,
        sector: u64,
        mut bytes: Outgoing<'_>,
        may: May<'_>,
    ) -> Result<(), Refused> {
        self.writable()?;
        let mut at = self.range(sector, bytes.len() as u64)?;
        while bytes.len() > 0 {
            let written = self.write_some(at, &bytes, may)?;
            bytes.advance(written);
            at += written as u64;
        }
        self.make_stable(may)
    }

    /// Writes at least one of the bytes. Returns how many.
    fn write_some(&self, at: u64, bytes: &Outgoing<'_>, may: May<'_>) -> Result<usize, Refused> {
        match &self.direct {
            Some(direct) => direct.write_some(self.target(), at, bytes, may),
            None => with_permits(may, |permit| out::write_at(permit, self.target(), at, bytes)),
        }
    }

    /// The handle for other threads.
    pub(crate) fn input(&self) -> Input {
        Input {
            driver_flushes: self.driver_flushes.clone(),
            file: self.file.clone(),
            path: self.path.clone(),
            read_only: self.read_only,
            fence: self.fence.clone(),
            lock: self.lock.clone(),
            lock_file: self.lock_file.clone(),
        }
    }

    /// P3: makes written data durable, if the driver has no way to do so.
    fn make_stable(&self, may: May<'_>) -> Result<(), Refused> {
        let through = self.write_through || self.driver_flushes.load(Ordering::Acquire);
        if through { Ok(()) } else { self.flush(may) }
    }

    pub(crate) fn flush(&self, may: May<'_>) -> Result<(), Refused> {
        with_permits(may, |permit| out::sync(permit, &self.file))
    }

    pub(crate) fn discard(
        &self,
        released: Released<'_>,
        sector: u64,
        sectors: u64,
        may: May<'_>,
    ) -> Result<(), Refused> {
        self.writable()?;
        let (at, len) = self.sector_range(sector, sectors)?;
        self.allocate(released, FallocateFlags::PUNCH_HOLE, (at, len), may)
    }

    pub(crate) fn write_zeroes(
        &self,
        released: Released<'_>,
        sector: u64,
        sectors: u64,
        unmap: bool,
        may: May<'_>,
    ) -> Result<(), Refused> {
        self.writable()?;
        let (at, len) = self.sector_range(sector, sectors)?;
        let mode = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match self.allocate(released, mode, (at, len), may) {
            Err(Refused::Io(error)) if is_unsupported(&error) => {
                self.write_zeroes_plainly(released, at, len, may)
            }
            result => result,
        }
    }

    fn write_zeroes_plainly(
        &self,
        released: Released<'_>,
        mut at: u64,
        len: u64,
        may: May<'_>,
    ) -> Result<(), Refused> {
        let end = at + len;
        while at < end {
            at += self.write_some(at, &released.zeroes((end - at) as usize), may)? as u64;
        }
        self.make_stable(may)
    }

    fn allocate(
        &self,
        released: Released<'_>,
        mode: FallocateFlags,
        (at, len): (u64, u64),
        may: May<'_>,
    ) -> Result<(), Refused> {
        if len == 0 {
            return Ok(());
        }
        let mode = mode | FallocateFlags::KEEP_SIZE;
        let call = |permit| out::allocate(permit, released, &self.file, mode, at, len);
        with_permits(&mut *may, call)?;
        // O_DSYNC and RWF_DSYNC do not cover allocation.
        if self.write_through { self.flush(may) } else { self.make_stable(may) }
    }

    /// Logs a failure and returns the outcome for the guest.
    pub(crate) fn failed(&self, what: &str, sector: u64, error: &io::Error) -> Outcome {
        if is_unsupported(error) {
            log::debug!("disk {}: {what}: {error}", self.path.display());
            return Outcome::Unsupported;
        }
        log::warn!("disk {}: {what} at sector {sector}: {error}", self.path.display());
        Outcome::Failed
    }

    fn writable(&self) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "opened read-only"));
        }
        Ok(())
    }

    fn sector_range(&self, sector: u64, sectors: u64) -> io::Result<(u64, u64)> {
        let len = sectors.checked_mul(SECTOR).ok_or_else(out_of_range)?;
        Ok((self.range(sector, len)?, len))
    }

    /// The offset of a range, which must lie on the disk: a write never extends the file.
    fn range(&self, sector: u64, len: u64) -> io::Result<u64> {
        let at = sector.checked_mul(SECTOR).ok_or_else(out_of_range)?;
        match at.checked_add(len) {
            Some(end) if end <= self.sectors * SECTOR => Ok(at),
            _ => Err(out_of_range()),
        }
    }
}

fn out_of_range() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the disk")
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

/// The error for a file that cannot be a disk because of its kind.
fn other_kind(path: &Path, found: &std::fs::Metadata) -> Option<DiskError> {
    let kind = found.file_type();
    let found = own_files::describe(found);
    (!kind.is_file() && !is_block_device(kind))
        .then(|| DiskError::Kind { path: path.to_owned(), found })
}

fn is_block_device(kind: std::fs::FileType) -> bool {
    use std::os::unix::fs::FileTypeExt;
    kind.is_block_device()
}

/// P2: checks that no user on this host has exclusive use of a device (a mounted file system, or a
/// volume manager). Closes the device again, because a pair's other side may have it open too.
///
/// # Errors
/// When the device is in exclusive use.
pub fn check_unused(path: &Path) -> Result<(), DiskError> {
    let until = Instant::now() + OTHERS_LOOK;
    loop {
        match descriptors::device_for_this_process_alone(path) {
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                return Err(DiskError::Open { path: path.to_owned(), error });
            }
            // Another process may make the same check at this moment.
            Err(error) if Instant::now() >= until => {
                return Err(DiskError::Busy { path: path.to_owned(), error });
            }
            Err(_) => std::thread::sleep(AGAIN),
            Ok(_) => return Ok(()),
        }
    }
}

/// P2: returns the file to lock in addition to the opened device node. On one host a device may
/// have many nodes, and a file many loop devices. The given node is locked too, because another
/// process may find only that one.
fn lock_of_device(given: &File, path: &Path, read_only: bool) -> Option<File> {
    let backing = descriptors::loop_backing(given, read_only).unwrap_or_else(|error| {
        log::warn!(
            "disk {}: cannot open the file behind it, so that only the device is locked; a process that opens the \
             file by another name is not kept away: {error}",
            path.display()
        );
        None
    });
    let device = backing.as_ref().unwrap_or(given);
    let node = descriptors::kernels_node(device, read_only);
    if node.is_none() && device.metadata().is_ok_and(|found| is_block_device(found.file_type())) {
        log::warn!(
            "disk {}: cannot open the kernel's own node of the device in /dev; a process that opens the device by \
             another node is not kept away",
            path.display()
        );
    }
    // Two open file descriptions of one inode would lock each other out.
    let id = |file: &File| file.metadata().ok().map(|found| FileId::of(&found));
    node.or(backing).filter(|other| id(other) != id(given))
}

/// The files to lock for a disk that was opened as `given`. All users of the disk find the first
/// one, whatever name they use.
fn locked<'f>(given: &'f File, other: Option<&'f File>) -> Vec<&'f File> {
    other.into_iter().chain([given]).collect()
}

fn lock(lock: &Lock, files: &[&File], path: &Path, of: Use) -> Result<(), DiskError> {
    lock.take(files, of).map_err(|error| match error {
        error if disk_lock::is_taken(&error) => DiskError::Locked { path: path.to_owned() },
        error => DiskError::Lock { path: path.to_owned(), error },
    })
}
