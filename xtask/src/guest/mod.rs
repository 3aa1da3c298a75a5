//! Preparing guests: a stock Debian kernel, an initramfs and a Debian root file system, cached outside the tree.
//!
//! Everything here is data for tests and demonstrations. The monitor itself needs none of it.

pub mod cache;
mod command;
pub mod cpio;
pub mod debian;
pub mod initramfs;
pub mod kernel;
pub mod packages;
pub mod probe;
pub mod rootfs;

use std::path::PathBuf;

use anyhow::Result;

pub use cache::cache_dir;
pub use command::{output, run};
pub use packages::ensure_packages;
pub use probe::{HostKvm, Probe, probe_host};

use cache::Cache;
use debian::Archive;

/// One preparation: the cache and the Debian archive it is filled from.
pub struct Preparation<'a> {
    /// Told what is being done, one line at a time.
    pub say: &'a dyn Fn(&str),
    /// Where prepared artefacts live.
    pub cache: Cache,
    /// Where packages come from.
    pub archive: Archive,
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
    /// The kernel's release, such as `6.1.0-42-cloud-amd64`.
    pub release: String,
}

impl<'a> Preparation<'a> {
    /// Opens the cache and the package lists; refreshes the lists if they are missing or old.
    pub fn begin(say: &'a dyn Fn(&str)) -> Result<Self> {
        let cache = Cache::open(&cache_dir()?, say)?;
        let archive = Archive::open(&cache, say)?;
        Ok(Self { say, cache, archive })
    }

    /// The kernel, the initramfs and the root file system of the Linux guest.
    pub fn linux_guest(&self) -> Result<LinuxGuest> {
        let kernel = kernel::prepare(self)?;
        let initramfs = initramfs::prepare(self, &kernel)?;
        let rootfs = rootfs::prepare(self)?;
        Ok(LinuxGuest {
            vmlinuz: kernel.vmlinuz(),
            vmlinux: kernel.vmlinux(),
            initramfs,
            rootfs,
            release: kernel.release.clone(),
        })
    }
}
