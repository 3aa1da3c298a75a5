//! The image of an own disk.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use io_gate::host::ImageRight;
use rustix::fs::fstatvfs;

use super::OwnDiskError;
use super::medium;
use crate::backend::disk::{Disk, DiskError, DiskOptions};
use crate::backend::image_format::{self, ImageFormat};
use crate::backend::own_disk::WritableImage;
use crate::descriptors;
use crate::own_files::{Draft, FileId, give_back};

/// What tells an image from another one (R11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageId {
    /// Its inode number; 0 for a block device, whose node may be made anew at each boot.
    pub inode: u64,
    /// The number of its file system; 0 for a block device, whose own number may change.
    pub filesystem: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl ImageId {
    fn of(file: &File, size: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        match metadata.is_file() {
            true => Ok(Self { inode: metadata.ino(), filesystem: fstatvfs(file)?.f_fsid, size }),
            false => Ok(Self { inode: 0, filesystem: 0, size }),
        }
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.inode == 0
    }

    /// Of the image at `path`, which is only looked at: another process may be using it.
    ///
    /// # Errors
    /// When it cannot be opened, or is no disk.
    pub fn look(path: &Path) -> Result<Self, OwnDiskError> {
        let options = DiskOptions { read_only: true, ..DiskOptions::default() };
        let disk = Disk::open(path, options)?;
        of_disk(&disk, path)
    }
}

fn of_disk(disk: &Disk, path: &Path) -> Result<ImageId, OwnDiskError> {
    let failed = |error| failed("ask for its identity", path, error);
    let size = size(disk.file()).map_err(failed)?;
    ImageId::of(disk.file(), size).map_err(failed)
}

/// The metadata of a block device has no length.
fn size(mut file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::End(0))
}

fn failed(what: &'static str, path: &Path, error: io::Error) -> OwnDiskError {
    OwnDiskError::Io { what, path: path.to_owned(), error }
}

/// An image that is open for writing, and locked.
#[derive(Debug)]
pub struct OwnImage {
    disk: Disk,
    path: PathBuf,
    id: ImageId,
}

impl OwnImage {
    /// Opens and locks a raw image or a block device.
    ///
    /// # Errors
    /// When it cannot be opened, is no disk, or another process uses it.
    pub fn open(path: &Path) -> Result<Self, OwnDiskError> {
        let options = DiskOptions { lock: true, ..DiskOptions::default() };
        let disk = Disk::open(path, options)?;
        let id = of_disk(&disk, path)?;
        Ok(Self { disk, path: path.to_owned(), id })
    }

    /// Whether anything has this name.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn exists(path: &Path) -> Result<bool, OwnDiskError> {
        look_at(path)
            .map(|found| found.is_some())
            .map_err(|error| failed("look at it", path, error))
    }

    /// Makes an image of `size` bytes, all hole, where there is no file.
    ///
    /// # Errors
    /// When there is a file, or the system refuses. Nothing is left behind then.
    pub fn create(path: &Path, size: u64) -> Result<(), OwnDiskError> {
        let failed = |error| failed("create it", path, error);
        let draft = Draft::of(path, descriptors::draft).map_err(failed)?;
        medium::set_size(draft.file(), size).map_err(failed)?;
        medium::sync_all(draft.file()).map_err(failed)?;
        draft.publish(descriptors::sync_directory).map_err(failed)
    }

    /// Removes an image that this process has just made.
    pub fn take_back(self) {
        if let Ok(made) = self.disk.file().metadata() {
            give_back(&self.path, FileId::of(&made));
        }
    }

    /// The image for the guest's writes: the same open file, and its lock. The right to it names
    /// the image by the id that its sidecar has (R7).
    ///
    /// # Errors
    /// When the image's size has changed.
    pub fn for_guest(&self, right: ImageRight) -> Result<WritableImage, DiskError> {
        Ok(WritableImage::new(self.disk.again()?, right))
    }

    /// Its identity, as of when it was opened.
    #[must_use]
    pub fn id(&self) -> ImageId {
        self.id
    }

    /// The format that its content has, if it is not raw.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn format(&self) -> Result<Option<ImageFormat>, OwnDiskError> {
        image_format::of_file(self.disk.file())
            .map_err(|error| failed("read it", &self.path, error))
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// When they are not on the disk, or cannot be read.
    pub fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.check(at, into.len() as u64)?;
        self.disk.file().read_exact_at(into, at)
    }

    /// Writes bytes. After an error it is not known which of them were written (R5).
    ///
    /// # Errors
    /// When they are not on the disk, or the storage fails.
    pub fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(at, bytes.len() as u64)?;
        medium::write(self.disk.file(), at, bytes)
    }

    /// Makes bytes zero, as a hole if the file system can.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        self.check(at, len)?;
        medium::zero(self.disk.file(), at, len)
    }

    /// Makes all that was written durable. An error is final (R5): the kernel may take the data for
    /// written, so that a second call would succeed without it.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn sync(&self) -> io::Result<()> {
        medium::sync(self.disk.file())
    }

    /// A write never extends the image.
    fn check(&self, at: u64, len: u64) -> io::Result<()> {
        match at.checked_add(len) {
            Some(end) if end <= self.id.size => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the disk")),
        }
    }
}

/// What is at `path`: `None` for no file.
pub(super) fn look_at(path: &Path) -> io::Result<Option<Metadata>> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}
