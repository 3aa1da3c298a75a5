//! The directory of a `file:` arbiter.
//!
//! Each operation is atomic, and other hosts see its result when it returns. It is a trait so that
//! tests can use a slow directory, or one that behaves as a network file system's client.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use io_gate_host::own_files;
use kemari_support::given_file::{self, ask_server};
use rustix::fs::{Access, StatxFlags};
use tempfile::NamedTempFile;

/// Upper bound of a record, in bytes. A record needs far less: two names of a few hundred bytes,
/// and text for people. A record with a set is longer than 64 KiB on purpose (see `records`).
const LONGEST_RECORD: u64 = 128 << 10;

/// The operations on the directory.
pub(super) trait Directory: Debug + Send + Sync {
    /// Its path, for messages.
    fn path(&self) -> &Path;
    /// Its identity: the device and inode number that its path names now.
    fn place(&self) -> io::Result<(u64, u64)>;
    /// The names of all files.
    fn names(&self) -> io::Result<Vec<String>>;
    /// The file's content as the server has it now; `None`: the file does not exist.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Creates a file that does not exist yet. Over a network, the answer to a success can be lost,
    /// and this returns an error: the file's content then decides.
    fn create(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Appends to an existing file. Never creates a file and never removes bytes.
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Creates or replaces a file.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Removes a file if it exists.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Checks for permission and free space, without writing: a standby calls this every second.
    fn takes_files(&self) -> io::Result<()> {
        rustix::fs::access(self.path(), Access::WRITE_OK | Access::EXEC_OK)?;
        let found = rustix::fs::statvfs(self.path())?;
        // Some file systems report no file count.
        if found.f_bavail == 0 || (found.f_files > 0 && found.f_favail == 0) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

/// The directory of this host.
#[derive(Debug)]
pub(super) struct HostDirectory {
    path: PathBuf,
    /// Held open so that its inode number is not reused.
    _open: File,
}

impl HostDirectory {
    /// Opens the directory of `vm` below `base`. Creates both if needed, but not the parents of
    /// `base`: this catches some unmounted file systems, but not those with an empty mount point.
    /// The directory's identity, which the handshake compares, keeps two hosts from using separate
    /// terms.
    pub(super) fn open(base: &Path, vm: &str) -> io::Result<Self> {
        let path = base.join(vm);
        make(base).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(
                "its parent directory does not exist; mount the storage that both hosts share, or create the \
                 directory first",
            ),
            _ => error,
        })?;
        make(&path)?;
        // Sync the parent: the directory's name must survive a power failure as its records do.
        File::open(base)?.sync_all()?;
        let open = File::open(&path)?;
        Ok(Self { path, _open: open })
    }

    /// Writes a complete, synced file under a temporary name.
    fn temporary(&self, bytes: &[u8]) -> io::Result<NamedTempFile> {
        let mut refused = None;
        let make = |path: &Path| {
            let mut options = File::options();
            let made = options.read(true).write(true).create_new(true).mode(0o600).open(path);
            made.inspect_err(|error| refused = error.raw_os_error())
        };
        let made = tempfile::Builder::new().prefix("claim-").make_in(&self.path, make);
        // Keep the system's error code: the advice in a message depends on it, and `tempfile` keeps
        // only its text.
        let mut file = made.map_err(|error| refused.map_or(error, io::Error::from_raw_os_error))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        Ok(file)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Directory for HostDirectory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn place(&self) -> io::Result<(u64, u64)> {
        // Ask the server: a stale answer could show a taken term as free.
        let found =
            ask_server(&self.path, StatxFlags::INO | StatxFlags::MTIME | StatxFlags::CTIME)?;
        let device = u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor);
        Ok((device, found.stx_ino))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        // Read the size too: it makes the client re-read a file even if the file's times are
        // coarse.
        let asked = ask_server(&path, StatxFlags::SIZE | StatxFlags::MTIME);
        // P9: the path may name a file of any kind and size.
        found(asked.and_then(|_| given_file::read_up_to(&path, LONGEST_RECORD)))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // No reader sees an incomplete file, and link(2) fails if the name exists. Both hold on
        // local file systems and on NFS.
        let temporary = self.temporary(bytes)?;
        fs::hard_link(temporary.path(), self.path.join(name))?;
        drop(temporary);
        self.sync()
    }

    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // P9: the path may name a FIFO; do not wait for its reader.
        let mut options = File::options();
        let mut file =
            options.append(true).custom_flags(libc::O_NONBLOCK).open(self.path.join(name))?;
        file.write_all(bytes)?;
        // Sync: a network file system may keep a write on this host and report a failure only when
        // it sends it. After the sync, other hosts see it.
        file.sync_data()
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.temporary(bytes)?.persist(self.path.join(name)).map_err(|error| error.error)?;
        self.sync()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        found(fs::remove_file(self.path.join(name))).map(drop)
    }
}

/// Creates a directory unless it exists.
fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path)?;
            let found = own_files::describe(&found);
            Err(io::Error::other(format!("expected a directory, found {found}")))
        }
        made => made,
    }
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::ArbiterError;

    /// P9. The system's error survives in a failed record. Fails if only its text does: the message
    /// for a limit of the system would then advise to check the directory.
    #[test]
    fn what_the_system_says_of_a_new_record_is_known() {
        let base = tempfile::tempdir().unwrap();
        let directory = HostDirectory::open(base.path(), "vm").unwrap();
        assert!(directory.temporary(b"{}").is_ok());
        fs::remove_dir(base.path().join("vm")).unwrap();
        let source = directory.temporary(b"{}").unwrap_err();
        assert_eq!(source.raw_os_error(), Some(libc::ENOENT), "{source}");
        let source = io::Error::from_raw_os_error(libc::EMFILE);
        let error = ArbiterError::Directory { what: "claim", path: base.path().into(), source };
        assert!(error.to_string().contains("ulimit -Hn"), "{error}");
    }
}
