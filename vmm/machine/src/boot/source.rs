//! A boot file during its load into guest memory: opened once, checked, and read in pieces.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use kemari_hypervisor::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::error::BootError;

/// Opens a kernel or an initrd (`what`, also the flag's name). It must be a regular file or a block
/// device: it is read more than once, and its end must be known.
pub(super) fn open(what: &'static str, path: &Path) -> Result<File, BootError> {
    let unreadable = |source| BootError::Unreadable { what, path: path.to_owned(), source };
    // O_NONBLOCK keeps the open from waiting for a FIFO's writer; it has no effect on regular
    // files.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    // A socket cannot be opened: get the metadata by its path.
    let metadata = file.as_ref().map_or_else(|_| std::fs::metadata(path), File::metadata);
    if let Ok(kind) = metadata.map(|found| found.file_type()) {
        if kind.is_dir() {
            return Err(unreadable(io::ErrorKind::IsADirectory.into()));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(unreadable(io::Error::other("it is not a regular file")));
        }
    }
    let mut file = file.map_err(unreadable)?;
    let no_size = |_| unreadable(io::Error::other("it has no size, like files in /proc"));
    file.seek(SeekFrom::End(0)).map_err(no_size)?;
    file.rewind().map_err(unreadable)?;
    Ok(file)
}

/// Bytes per read: small enough to report progress on slow storage (P7).
const PIECE: u64 = 1 << 20;

/// A boot file, its length, and the report of progress.
pub(super) struct Source<'a> {
    pub(super) what: &'static str,
    pub(super) path: &'a Path,
    file: &'a File,
    len: u64,
    progress: &'a dyn Fn(),
}

impl<'a> Source<'a> {
    pub(super) fn new(
        what: &'static str,
        path: &'a Path,
        mut file: &'a File,
        progress: &'a dyn Fn(),
    ) -> Result<Self, BootError> {
        let len = file.seek(SeekFrom::End(0)).map_err(|source| BootError::Unreadable {
            what,
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { what, path, file, len, progress })
    }

    /// Length of the file in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn unreadable(&self, source: io::Error) -> BootError {
        BootError::Unreadable { what: self.what, path: self.path.to_owned(), source }
    }

    /// The error for a damaged kernel.
    pub(super) fn damaged(&self, reason: impl Into<String>) -> BootError {
        BootError::Damaged { path: self.path.to_owned(), reason: reason.into() }
    }

    /// Refuses a kernel whose file lacks the `len` bytes from `offset`; `whose` names the header
    /// that refers to them.
    pub(super) fn must_have(&self, whose: &str, offset: u64, len: u64) -> Result<(), BootError> {
        let expected = offset.checked_add(len).ok_or_else(|| {
            self.damaged(format!("{whose}: no file has {len:#x} bytes from {offset:#x}"))
        })?;
        if expected > self.len {
            return Err(self.damaged(format!(
                "cut short: {whose} end after {expected} bytes, the file has {}: copy it again",
                self.len
            )));
        }
        Ok(())
    }

    /// Reads the first `max` bytes, or all bytes if the file is shorter.
    pub(super) fn head(&mut self, max: u64) -> Result<Vec<u8>, BootError> {
        self.bytes(0, max.min(self.len))
    }

    /// Reads `len` bytes from `offset`; the file must have them.
    pub(super) fn bytes(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, BootError> {
        let mut bytes = vec![0; len as usize];
        let read = self.file.seek(SeekFrom::Start(offset));
        read.and_then(|_| self.file.read_exact(&mut bytes)).map_err(|e| self.shrunk(e))?;
        Ok(bytes)
    }

    /// Loads `len` bytes from `offset` to `addr`. The file must have them, and `addr` must be RAM.
    pub(super) fn load(
        &mut self,
        memory: &GuestMemory,
        offset: u64,
        addr: u64,
        len: u64,
    ) -> Result<(), BootError> {
        self.file.seek(SeekFrom::Start(offset)).map_err(|e| self.unreadable(e))?;
        let mut done = 0;
        // On some file systems, one read may return fewer bytes than requested.
        while done < len {
            (self.progress)();
            let to = GuestAddress(addr + done);
            let piece = (len - done).min(PIECE) as usize;
            match memory.read_volatile_from(to, &mut self.file, piece) {
                Ok(0) => return Err(self.shrunk(io::ErrorKind::UnexpectedEof.into())),
                Ok(got) => done += got as u64,
                Err(error) => return Err(self.unreadable(io_error(error))),
            }
        }
        Ok(())
    }

    /// The error of a read that ended early: the file had these bytes when its length was read.
    fn shrunk(&self, error: io::Error) -> BootError {
        self.unreadable(match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::other(format!(
                "it had {} bytes when it was opened, and is shorter now",
                self.len
            )),
            _ => error,
        })
    }
}

fn io_error(error: GuestMemoryError) -> io::Error {
    match error {
        GuestMemoryError::IOError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
