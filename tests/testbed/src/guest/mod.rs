//! Prepares guests from Debian: a stock kernel, an initramfs and a root file system, cached outside
//! the source tree.
//!
//! Only tests and demonstrations need these guests; the monitor does not.

pub(crate) mod cache;
mod command;
pub(crate) mod cpio;
pub(crate) mod debian;
pub(crate) mod initramfs;
pub(crate) mod kernel;
pub(crate) mod packages;
pub(crate) mod rootfs;

use std::path::PathBuf;

use anyhow::Result;

use cache::{Cache, cache_dir};
pub use command::output;
pub(crate) use command::run;
use debian::Archive;
pub use kernel::KernelChoice;
pub use packages::{ensure_packages, ensure_programs};

/// A preparation: the cache, and the Debian archive that fills it.
pub struct Preparation<'a> {
    /// Receives each step as one line of text.
    pub(crate) say: &'a dyn Fn(&str),
    /// The cache of prepared artefacts.
    pub(crate) cache: Cache,
    /// The source of packages.
    pub(crate) archive: Archive,
}

/// The files of a stock Linux guest.
#[derive(Debug, Clone)]
pub struct LinuxGuest {
    /// The kernel as Debian ships it (bzImage).
    pub vmlinuz: PathBuf,
    /// The same kernel as an ELF file with a PVH note.
    pub vmlinux: PathBuf,
    /// The initramfs: busybox, the virtio drivers, and a script that mounts `/dev/vda`.
    pub initramfs: PathBuf,
    /// The pristine root file system (ext4). Boot only copies of it.
    pub rootfs: PathBuf,
}

impl<'a> Preparation<'a> {
    /// Opens the cache and the package lists, and refreshes the lists if they are missing or old.
    ///
    /// # Errors
    /// The cache cannot be used, or the lists cannot be fetched.
    pub fn begin(say: &'a dyn Fn(&str)) -> Result<Self> {
        let cache = Cache::open(&cache_dir()?, say)?;
        let archive = Archive::open(&cache, say)?;
        Ok(Self { say, cache, archive })
    }

    /// Prepares a kernel, its initramfs, and the root file system of the Linux guest.
    ///
    /// # Errors
    /// One of them cannot be made.
    pub fn linux_guest(&self, choice: KernelChoice) -> Result<LinuxGuest> {
        let kernel = kernel::prepare(self, choice)?;
        let initramfs = initramfs::prepare(self, &kernel)?;
        let rootfs = rootfs::prepare(self)?;
        Ok(LinuxGuest { vmlinuz: kernel.vmlinuz(), vmlinux: kernel.vmlinux(), initramfs, rootfs })
    }
}
