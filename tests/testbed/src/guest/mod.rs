//! Prepares guests: a stock Debian kernel, an initramfs and a Debian root file system, cached outside the tree.
//!
//! Everything here is data for tests and demonstrations. The monitor itself needs none of it.

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

/// One preparation: the cache and the Debian archive it is filled from.
pub struct Preparation<'a> {
    /// Called with each step, one line at a time.
    pub(crate) say: &'a dyn Fn(&str),
    /// Where prepared artefacts live.
    pub(crate) cache: Cache,
    /// Where packages come from.
    pub(crate) archive: Archive,
}

/// A stock Linux guest, ready to be copied and booted.
#[derive(Debug, Clone)]
pub struct LinuxGuest {
    /// The kernel as Debian ships it (bzImage).
    pub vmlinuz: PathBuf,
    /// The same kernel as an ELF file with a PVH note.
    pub vmlinux: PathBuf,
    /// The initramfs: busybox, the virtio drivers, and a script that mounts `/dev/vda`.
    pub initramfs: PathBuf,
    /// The pristine root file system (ext4). Never boot it: boot a copy.
    pub rootfs: PathBuf,
}

impl<'a> Preparation<'a> {
    /// Opens the cache and the package lists; refreshes the lists if they are missing or old.
    ///
    /// # Errors
    /// The cache cannot be used, or the lists cannot be fetched.
    pub fn begin(say: &'a dyn Fn(&str)) -> Result<Self> {
        let cache = Cache::open(&cache_dir()?, say)?;
        let archive = Archive::open(&cache, say)?;
        Ok(Self { say, cache, archive })
    }

    /// A kernel, the initramfs that goes with it, and the root file system of the Linux guest.
    ///
    /// # Errors
    /// One cannot be made.
    pub fn linux_guest(&self, choice: KernelChoice) -> Result<LinuxGuest> {
        let kernel = kernel::prepare(self, choice)?;
        let initramfs = initramfs::prepare(self, &kernel)?;
        let rootfs = rootfs::prepare(self)?;
        Ok(LinuxGuest { vmlinuz: kernel.vmlinuz(), vmlinux: kernel.vmlinux(), initramfs, rootfs })
    }
}
