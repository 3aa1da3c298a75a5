//! A raw disk: a file or a block device, read and written by one thread.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use io_gate::Outcome;

use super::direct::Direct;
pub use super::disk_error::DiskError;
use super::disk_fence::DiskFence;
use super::disk_lock::{self, Lock, Use};
pub use super::sector::SECTOR;
use crate::descriptors;
use crate::out::{self, Outgoing, Refused, Released, Target, with_permits};
use crate::own_files::{self, FileId};
use crate::permit::May;

/// `VIRTIO_BLK_F_FLUSH` (5.2.3).
const F_FLUSH: u64 = 1 << 9;
/// How long another process may look whether a device is free, as this one does, and how often that is tried.
const OTHERS_LOOK: Duration = Duration::from_millis(100);
const AGAIN: Duration = Duration::from_millis(5);

/// How a disk is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// Never write to it.
    pub read_only: bool,
    /// Take a lock, so that no two machines use it: for writing, against all others; for reading,
    /// against writers.
    pub lock: bool,
    /// A write completes when it is in the storage, not when it is in this host's page cache, which
    /// dies with the host.
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
    /// Whether it was opened so that each write is durable (`O_DSYNC`).
    opened_through: bool,
    /// Whether each write is to be durable: also from some moment on.
    write_through: bool,
    /// Whether the guest's driver flushes. If not, what completes is stable (virtio 1.2, 5.2.6.2): so it is until a driver
    /// has said otherwise.
    driver_flushes: Arc<AtomicBool>,
    direct: Option<Direct>,
    fence: Option<Arc<DiskFence>>,
    lock: Arc<Lock>,
    /// Of a block device: what is locked besides.
    lock_file: Option<Arc<File>>,
}

/// What threads other than its lane know of a disk.
pub(super) struct Input {
    driver_flushes: Arc<AtomicBool>,
    file: Arc<File>,
    path: PathBuf,
    read_only: bool,
    fence: Option<Arc<DiskFence>>,
    lock: Arc<Lock>,
    lock_file: Option<Arc<File>>,
}

/// Who shares a disk with another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side of a pair that runs the guest, from its start.
    Active,
    /// The side of a pair that goes on with a guest, or is to have a new standby: the other may be stopped, and still have
    /// the disk locked.
    Successor,
    /// A standby.
    Standby,
}

impl Input {
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn fence(&self) -> Option<&Arc<DiskFence>> {
        self.fence.as_ref()
    }

    /// The guest's driver has accepted these features.
    pub(super) fn negotiated(&self, features: u64) {
        self.driver_flushes.store(features & F_FLUSH != 0, Ordering::Release);
    }

    /// Locks the image for what this process does with it, instead of what it did.
    pub(super) fn lock(&self, of: Use) -> Result<(), DiskError> {
        let of = if self.read_only { Use::Reader } else { of };
        lock(&self.lock, &locked(&self.file, self.lock_file.as_deref()), &self.path, of)
    }

    /// See [`Disk::share`].
    pub(super) fn share(&self, side: Side, has_terms: bool) -> Result<(), DiskError> {
        let locked = match side {
            Side::Active => self.lock(Use::Active),
            Side::Successor => self.lock(Use::Active).or_else(|_| {
                self.lock(Use::Pair).inspect(|()| {
                    log::info!(
                        "disk {}: another process has it open, the former primary perhaps; it is not waited for, as the term \
                         decides who writes",
                        self.path.display()
                    );
                })
            }),
            Side::Standby => self.lock(Use::Pair),
        };
        match locked {
            Err(error @ DiskError::Lock { .. }) if has_terms => {
                log::warn!("{error}; the record beside it alone keeps others from writing");
                Ok(())
            }
            locked => locked,
        }
    }
}

impl Disk {
    /// Whether what is there, if anything, could be a disk by its kind and size. Nothing is opened.
    ///
    /// # Errors
    /// When it could not.
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
                // What a file system says that has no O_DIRECT (open(2)).
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
        // A block device's metadata has no length.
        let bytes = file.seek(SeekFrom::End(0)).map_err(|_| DiskError::Kind {
            path: path.to_owned(),
            found: "a file without a size, such as there are in /proc".to_owned(),
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

    /// Another handle of the same open file, without a record: what is locked stays so as long as there is one of them.
    ///
    /// # Errors
    /// When it has another size by now, or cannot be looked at.
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

    /// Has a record say who may write to it.
    #[must_use]
    pub fn fenced_by(mut self, fence: DiskFence) -> Self {
        self.fence = Some(Arc::new(fence));
        self
    }

    pub(crate) fn fence(&self) -> Option<&Arc<DiskFence>> {
        self.fence.as_ref()
    }

    /// Locks the image for what this process does with it, instead of what it did.
    ///
    /// # Errors
    /// When another process does something with it that does not go together with that. What it was locked for stays.
    pub fn lock(&self, of: Use) -> Result<(), DiskError> {
        self.input().lock(of)
    }

    /// P3: what this host has cached of a block device may be older than what another host has written to it since, as nobody
    /// tells. Has reads ask the storage, from now on and once. A file's pages are looked after by its file system.
    pub fn forget_cached(&self) {
        if !self.file.metadata().is_ok_and(|metadata| is_block_device(metadata.file_type())) {
            return;
        }
        // SAFETY: a call on a descriptor that is open, without memory.
        let refused =
            unsafe { libc::posix_fadvise(self.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        if refused != 0 {
            let error = io::Error::from_raw_os_error(refused);
            log::warn!("disk {}: what is cached of it stays: {error}", self.path.display());
        }
    }

    /// Locks a disk that another host is to have as well. Whoever goes on with a guest is held up by no lock of the pair's
    /// other side: the term is won, and the record beside the disk keeps that side from writing. A machine that is of no pair
    /// has no terms, and is to be ended first. Nor does a file system without locks hold anything up, where there are terms.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn share(&self, side: Side, has_terms: bool) -> Result<(), DiskError> {
        self.input().share(side, has_terms)
    }

    /// From now on each write is in the storage when it completes, and all that were made before are when this returns (P3).
    /// Lane: no write is under way.
    pub(crate) fn write_through_from_now_on(&mut self, may: May<'_>) -> Result<(), Refused> {
        if self.read_only || self.write_through {
            return Ok(());
        }
        self.write_through = true;
        let synced = self.flush(may);
        // One that has failed is tried again.
        self.write_through = synced.is_ok();
        synced
    }

    /// Where writes go, and how.
    fn target(&self) -> Target<'_> {
        Target { file: &self.file, durably: self.write_through && !self.opened_through }
    }

    /// Its size in sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The size of the storage's blocks, where it is read and written directly.
    #[must_use]
    pub fn direct_block(&self) -> Option<u64> {
        self.direct.as_ref().map(Direct::block)
    }

    /// Whether it is never written.
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

    /// Writes some of the bytes, at least one: how many.
    fn write_some(&self, at: u64, bytes: &Outgoing<'_>, may: May<'_>) -> Result<usize, Refused> {
        match &self.direct {
            Some(direct) => direct.write_some(self.target(), at, bytes, may),
            None => with_permits(may, |permit| out::write_at(permit, self.target(), at, bytes)),
        }
    }

    /// What other threads tell it.
    pub(super) fn input(&self) -> Input {
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

    /// P3: what was written is in the storage, for a driver that has no other way to have it there.
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
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.allocate(released, mode, (at, len), may)
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
        let mode = if unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
        match self.allocate(released, mode | libc::FALLOC_FL_KEEP_SIZE, (at, len), may) {
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
        mode: libc::c_int,
        (at, len): (u64, u64),
        may: May<'_>,
    ) -> Result<(), Refused> {
        if len == 0 {
            return Ok(());
        }
        let call = |permit| out::allocate(permit, released, &self.file, mode, at, len);
        with_permits(&mut *may, call)?;
        // Neither O_DSYNC nor RWF_DSYNC is about this.
        if self.write_through { self.flush(may) } else { self.make_stable(may) }
    }

    /// Logs a failure and says what the guest is told.
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

    /// The offset of a range, which must lie on the disk: a write never makes the file longer.
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

/// What is no disk by its kind.
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

/// P2: whether nobody on this host has a device for himself: a file system that is mounted, a volume manager. Not held on to: a
/// pair's other side may have it open as well.
///
/// # Errors
/// When somebody has.
pub fn check_unused(path: &Path) -> Result<(), DiskError> {
    let until = Instant::now() + OTHERS_LOOK;
    loop {
        match descriptors::device_for_this_process_alone(path) {
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                return Err(DiskError::Open { path: path.to_owned(), error });
            }
            // Another process may be looking just now, as this one does.
            Err(error) if Instant::now() >= until => {
                return Err(DiskError::Busy { path: path.to_owned(), error });
            }
            Err(_) => std::thread::sleep(AGAIN),
            Ok(_) => return Ok(()),
        }
    }
}

/// P2: what is to be locked of a block device besides the node that it was opened by: there may be many nodes of one device, and
/// many devices of one file, on this host. The node as well, as another process may find none but that one.
fn lock_of_device(given: &File, path: &Path, read_only: bool) -> Option<File> {
    let backing = descriptors::loop_backing(given, read_only).unwrap_or_else(|error| {
        log::warn!(
            "disk {}: the file behind it cannot be opened, so that only the device is locked, and whoever uses the file by \
             another name is not kept away: {error}",
            path.display()
        );
        None
    });
    let device = backing.as_ref().unwrap_or(given);
    let node = descriptors::kernels_node(device, read_only);
    if node.is_none() && device.metadata().is_ok_and(|found| is_block_device(found.file_type())) {
        log::warn!(
            "disk {}: the kernel's own node of the device cannot be opened in /dev, so that whoever uses it by another node is \
             not kept away",
            path.display()
        );
    }
    // Two descriptions of one inode would keep each other away.
    let id = |file: &File| file.metadata().ok().map(|found| FileId::of(&found));
    node.or(backing).filter(|other| id(other) != id(given))
}

/// What is locked of a disk that was opened as `given`; first what all that have it find, whatever they call it.
fn locked<'f>(given: &'f File, other: Option<&'f File>) -> Vec<&'f File> {
    other.into_iter().chain([given]).collect()
}

fn lock(lock: &Lock, files: &[&File], path: &Path, of: Use) -> Result<(), DiskError> {
    lock.take(files, of).map_err(|error| match error {
        error if disk_lock::is_taken(&error) => DiskError::Locked { path: path.to_owned() },
        error => DiskError::Lock { path: path.to_owned(), error },
    })
}
