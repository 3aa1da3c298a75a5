//! The boot files of a guest: open files, identified by their content.
//!
//! The files stay open, because a reset reloads them on a thread that may not open any. The primary
//! sends them to its standby, so that the guest can be reset on either host (P7).

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ring::digest::{Context, SHA256};

use super::error::BootError;
use super::image::Kernel;
use super::source;

/// Number of bytes to hash at a time.
const CHUNK: usize = 1 << 20;

/// A kernel or an initrd.
#[derive(Debug)]
pub struct Image {
    what: &'static str,
    path: PathBuf,
    file: File,
    /// The content's id, with the file's stamp at its computation. Held while the file is hashed:
    /// only one thread takes it, the one that connects to a standby, and the guest does not wait
    /// for that thread.
    known: Mutex<Option<(Stamp, ContentId)>>,
}

/// A file's content, identified by its size and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentId {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

/// Size, modification time and status change time: changes when the file is written to.
type Stamp = (u64, (i64, i64), (i64, i64));

impl Image {
    fn open(what: &'static str, path: &Path) -> Result<Self, BootError> {
        let file = source::open(what, path)?;
        Ok(Self { what, path: path.to_owned(), file, known: Mutex::new(None) })
    }

    /// A file received from the primary, in memory that no other process can write to.
    #[must_use]
    pub fn received(what: &'static str, file: File) -> Self {
        let path = PathBuf::from(format!("(the primary's {what})"));
        Self { what, path, file, known: Mutex::new(None) }
    }

    /// Its path or origin, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn source<'a>(
        &'a self,
        progress: &'a dyn Fn(),
    ) -> Result<source::Source<'a>, BootError> {
        source::Source::new(self.what, &self.path, &self.file, progress)
    }

    /// Reads bytes at `offset`; returns 0 at the end of the file.
    ///
    /// # Errors
    /// When the system refuses the read.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(bytes, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// The id of the current content. Reads the whole file, and again only after the file was
    /// written to.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn id(&self) -> Result<ContentId, BootError> {
        let unreadable =
            |source| BootError::Unreadable { what: self.what, path: self.path.clone(), source };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Take the stamp first: it then differs at the next call if the file is written to during
        // the hash.
        let now = stamp(&self.file.metadata().map_err(unreadable)?);
        if let Some((_, id)) = known.filter(|(then, _)| *then == now) {
            return Ok(id);
        }
        let id = self.hash().map_err(unreadable)?;
        *known = Some((now, id));
        Ok(id)
    }

    fn hash(&self) -> io::Result<ContentId> {
        let mut hash = ContentHash::default();
        let mut bytes = vec![0; CHUNK];
        loop {
            match self.read_at(&mut bytes, hash.size)? {
                0 => return Ok(hash.finish()),
                count => hash.add(&bytes[..count]),
            }
        }
    }
}

fn stamp(file: &Metadata) -> Stamp {
    (file.len(), (file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()))
}

/// Computes a [`ContentId`] piece by piece.
pub struct ContentHash {
    context: Context,
    size: u64,
}

impl Default for ContentHash {
    fn default() -> Self {
        Self { context: Context::new(&SHA256), size: 0 }
    }
}

impl ContentHash {
    /// Adds the next piece of the content.
    pub fn add(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// Number of bytes added so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The id of the added content.
    #[must_use]
    pub fn finish(self) -> ContentId {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.context.finish().as_ref());
        ContentId { size: self.size, sha256 }
    }
}

/// The boot files and the command line.
#[derive(Debug)]
pub struct Boot {
    /// The kernel.
    pub kernel: Arc<Image>,
    /// The initial RAM disk.
    pub initrd: Option<Arc<Image>>,
    /// The kernel's command line.
    pub cmdline: String,
}

impl Boot {
    /// Opens a kernel and, if given, an initrd.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn open(kernel: &Path, initrd: Option<&Path>, cmdline: &str) -> Result<Self, BootError> {
        let initrd = initrd.map(|path| Image::open("initrd", path)).transpose()?;
        let kernel = Image::open("kernel", kernel)?;
        Ok(Self::new(Arc::new(kernel), initrd.map(Arc::new), cmdline.to_owned()))
    }

    /// Makes a boot from open files.
    #[must_use]
    pub fn new(kernel: Arc<Image>, initrd: Option<Arc<Image>>, cmdline: String) -> Self {
        Self { kernel, initrd, cmdline }
    }

    /// Checks by its headers that the kernel is one, and that the initrd is not empty. Needs no
    /// machine.
    ///
    /// # Errors
    /// When a check fails.
    pub fn check(&self) -> Result<(), BootError> {
        Kernel::read(&mut self.kernel.source(&|| {})?)?;
        match &self.initrd {
            Some(initrd) if initrd.source(&|| {})?.len() == 0 => {
                Err(BootError::InitrdEmpty { path: initrd.path.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The ids of the kernel and of the initrd. Reads each file whole, which may take seconds.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn ids(&self) -> Result<(ContentId, Option<ContentId>), BootError> {
        let kernel = self.kernel.id()?;
        Ok((kernel, self.initrd.as_ref().map(|image| image.id()).transpose()?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_file_is_known_by_its_content_also_after_it_was_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, "abc").unwrap();
        let image = Image::open("kernel", &path).unwrap();
        let id = image.id().unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!((id.size, &id.sha256[..4]), (3, &[0xba, 0x78, 0x16, 0xbf][..]));
        assert_eq!(image.id().unwrap(), id);
        // Use another length: the stamp then differs even within one tick of the file system's
        // clock.
        std::fs::write(&path, "abcd").unwrap();
        assert_eq!(image.id().unwrap().size, 4);
    }
}
