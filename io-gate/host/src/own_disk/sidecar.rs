//! The sidecar file of an own disk (R11): two slots, then the mark area.
//!
//! It is made complete under a temporary name, and never grows. Each write is durable when it
//! returns, and does not wait for the image's cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::image::look_at;
use super::{OwnDiskError, medium};
use crate::aligned::{ALIGNMENT, Aligned};
use crate::descriptors;
use crate::disk_use::disk_lock::{self, Lock, Use};
use crate::own_files::{self, Draft, FileId};

/// Bytes of a slot, and of a block of the mark area.
const BLOCK: u64 = 4096;
/// Number of slots at the beginning of the file.
pub const SLOTS: usize = 2;
/// Bytes that are read or written at once.
const BUFFER: usize = 64 * 1024;

const _: () = assert!((BLOCK as usize).is_multiple_of(ALIGNMENT) && BUFFER > BLOCK as usize);

/// An open sidecar.
#[derive(Debug)]
pub struct SidecarFile {
    file: File,
    path: PathBuf,
    /// Whether it is written past the page cache.
    direct: bool,
    buffer: Aligned,
}

impl SidecarFile {
    /// The sidecar's place for an image: beside the image itself, because the operator may use a
    /// link to the image.
    #[must_use]
    pub fn beside(image: &Path) -> PathBuf {
        let mut name =
            std::fs::canonicalize(image).unwrap_or_else(|_| image.to_owned()).into_os_string();
        name.push(own_files::SIDECAR_SUFFIX);
        name.into()
    }

    /// Opens and locks the sidecar at `path`. Its content is not looked at.
    ///
    /// # Errors
    /// When there is none, it is no regular file, or another process uses it.
    pub fn open(path: &Path) -> Result<Self, OwnDiskError> {
        let failed = |error| failed("open it", path, error);
        check_kind(path)?;
        let (file, direct) = descriptors::sidecar(path).map_err(failed)?;
        Lock::default().take(&[&file], Use::Alone).map_err(|error| match error {
            error if disk_lock::is_taken(&error) => OwnDiskError::Locked { path: path.to_owned() },
            error => OwnDiskError::Lock { path: path.to_owned(), error },
        })?;
        if !direct {
            let path = path.display();
            log::info!(
                "{path}: its file system has no direct I/O; marks are written through the page cache"
            );
        }
        let sidecar = Self { file, path: path.to_owned(), direct, buffer: Aligned::new(BUFFER) };
        sidecar.check_place()?;
        Ok(sidecar)
    }

    /// Opens the sidecar at `path` for reading only: another process may be using it, so one slot
    /// or block may be read half written.
    ///
    /// # Errors
    /// When there is none, or it is no regular file.
    pub fn look(path: &Path) -> Result<Self, OwnDiskError> {
        check_kind(path)?;
        let file =
            descriptors::sidecar_to_read(path).map_err(|error| failed("open it", path, error))?;
        Ok(Self { file, path: path.to_owned(), direct: false, buffer: Aligned::new(BUFFER) })
    }

    /// Makes a sidecar of this content where there is no file.
    ///
    /// # Errors
    /// When there is a file, or the system refuses. Nothing is left behind then.
    pub fn create(path: &Path, content: &[u8]) -> Result<(), OwnDiskError> {
        check_free(path)?;
        let failed = |error| failed("create it", path, error);
        let draft = Draft::of(path, descriptors::draft).map_err(failed)?;
        medium::write(draft.file(), 0, content).map_err(failed)?;
        medium::sync_all(draft.file()).map_err(failed)?;
        draft.publish(descriptors::sync_directory).map_err(failed)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is written past the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether another process uses it.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        disk_lock::is_locked_by_another(&self.file)
    }

    /// What is there, for messages.
    #[must_use]
    pub fn description(&self) -> String {
        self.file
            .metadata()
            .map_or_else(|error| error.to_string(), |found| own_files::describe(&found))
    }

    /// Checks that the name still leads to this file.
    ///
    /// # Errors
    /// When another file has the name: a new process would find that one.
    pub fn check_place(&self) -> Result<(), OwnDiskError> {
        let ours = self.file.metadata().map_err(|error| failed("look at it", &self.path, error))?;
        match look_at(&self.path) {
            Ok(Some(found)) if FileId::of(&found) == FileId::of(&ours) => Ok(()),
            _ => Err(OwnDiskError::Replaced { path: self.path.clone() }),
        }
    }

    /// The bytes of both slots; fewer if the file ends before.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read_slots(&mut self) -> Result<[Vec<u8>; SLOTS], OwnDiskError> {
        Ok([self.read(0, BLOCK)?, self.read(BLOCK, BLOCK)?])
    }

    /// The bytes of the first `count` blocks of the mark area; fewer if the file ends before.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read_marks(&mut self, count: u64) -> Result<Vec<u8>, OwnDiskError> {
        self.read(SLOTS as u64 * BLOCK, count.saturating_mul(BLOCK))
    }

    /// Writes a slot. It is durable when this returns. After an error this slot may be torn.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn write_slot(&mut self, slot: usize, bytes: &[u8]) -> Result<(), OwnDiskError> {
        debug_assert!(slot < SLOTS && bytes.len() as u64 == BLOCK);
        self.write(slot as u64 * BLOCK, bytes)
            .map_err(|error| failed("write a slot", &self.path, error))
    }

    /// Writes blocks of the mark area, from `first` on. They are durable when this returns. After
    /// an error, or a power loss before this returns, any of them may be torn.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn write_marks(&mut self, first: u64, bytes: &[u8]) -> Result<(), OwnDiskError> {
        debug_assert!((bytes.len() as u64).is_multiple_of(BLOCK));
        self.write((SLOTS as u64 + first) * BLOCK, bytes)
            .map_err(|error| failed("write its marks", &self.path, error))
    }

    fn write(&mut self, mut at: u64, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(BUFFER) {
            let buffer = self.buffer.slice(piece.len());
            buffer.copy_from_slice(piece);
            medium::write(&self.file, at, buffer)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn read(&mut self, mut at: u64, len: u64) -> Result<Vec<u8>, OwnDiskError> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let wanted = (len - bytes.len() as u64).min(BUFFER as u64) as usize;
            let buffer = self.buffer.slice(wanted);
            match self.file.read_at(buffer, at) {
                Ok(0) => break,
                Ok(count) => {
                    bytes.extend_from_slice(&buffer[..count]);
                    at += count as u64;
                    // Direct I/O reads whole blocks, except at the end of the file.
                    if !count.is_multiple_of(BLOCK as usize) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("read it", &self.path, error)),
            }
        }
        Ok(bytes)
    }
}

fn failed(what: &'static str, path: &Path, error: io::Error) -> OwnDiskError {
    OwnDiskError::Io { what, path: path.to_owned(), error }
}

/// Checks that there is a regular file, before it is opened: opening a device may act on it.
fn check_kind(path: &Path) -> Result<(), OwnDiskError> {
    match look_at(path).map_err(|error| failed("look at it", path, error))? {
        None => Err(OwnDiskError::NoSidecar { path: path.to_owned() }),
        Some(found) if found.is_file() => Ok(()),
        Some(found) => {
            Err(OwnDiskError::Taken { path: path.to_owned(), found: own_files::describe(&found) })
        }
    }
}

/// Checks that nothing has the name.
fn check_free(path: &Path) -> Result<(), OwnDiskError> {
    match look_at(path).map_err(|error| failed("look at it", path, error))? {
        None => Ok(()),
        Some(found) => {
            Err(OwnDiskError::Taken { path: path.to_owned(), found: own_files::describe(&found) })
        }
    }
}
