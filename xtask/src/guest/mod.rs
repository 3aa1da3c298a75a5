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
pub(crate) mod probe;
pub(crate) mod rootfs;

use std::path::PathBuf;

use anyhow::Result;

pub(crate) use cache::cache_dir;
pub(crate) use command::{output, run};
pub(crate) use kernel::KernelChoice;
pub(crate) use packages::{ensure_packages, ensure_programs};
pub(crate) use probe::{HostKvm, probe_host};

use cache::Cache;
use debian::Archive;

/// One preparation: the cache and the Debian archive it is filled from.
pub(crate) struct Preparation<'a> {
    /// Called with each step, one line at a time.
    pub(crate) say: &'a dyn Fn(&str),
    /// Where prepared artefacts live.
    pub(crate) cache: Cache,
    /// Where packages come from.
    pub(crate) archive: Archive,
}

/// A stock Linux guest, ready to be copied and booted.
#[derive(Debug, Clone)]
pub(crate) struct LinuxGuest {
    /// The kernel as Debian ships it (bzImage).
    pub(crate) vmlinuz: PathBuf,
    /// The same kernel as an ELF file with a PVH note.
    pub(crate) vmlinux: PathBuf,
    /// The initramfs: busybox, the virtio drivers, and a script that mounts `/dev/vda`.
    pub(crate) initramfs: PathBuf,
    /// The pristine root file system (ext4). Never boot it: boot a copy.
    pub(crate) rootfs: PathBuf,
}

impl<'a> Preparation<'a> {
    /// Opens the cache and the package lists; refreshes the lists if they are missing or old.
    pub(crate) fn begin(say: &'a dyn Fn(&str)) -> Result<Self> {
        let cache = Cache::open(&cache_dir()?, say)?;
        let archive = Archive::open(&cache, say)?;
        Ok(Self { say, cache, archive })
    }

    /// A kernel, the initramfs that goes with it, and the root file system of the Linux guest.
    pub(crate) fn linux_guest(&self, choice: KernelChoice) -> Result<LinuxGuest> {
        let kernel = kernel::prepare(self, choice)?;
        let initramfs = initramfs::prepare(self, &kernel)?;
        let rootfs = rootfs::prepare(self)?;
        Ok(LinuxGuest { vmlinuz: kernel.vmlinuz(), vmlinux: kernel.vmlinux(), initramfs, rootfs })
    }
}
