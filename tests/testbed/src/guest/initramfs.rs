//! The Linux guest's initramfs: busybox, the virtio drivers, and a script that mounts the root file
//! system.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::Preparation;
use super::cache::sha256_text;
use super::cpio::Archive;
use super::kernel::Kernel;

const INIT: &str = include_str!("../../../guests/linux/initramfs-init");

/// Makes the initramfs, or takes it from the cache.
pub(crate) fn prepare(p: &Preparation<'_>, kernel: &Kernel) -> Result<PathBuf> {
    let mut inputs = kernel.inputs();
    inputs.insert("init".into(), sha256_text(INIT));
    let dir = p.cache.artefact(
        &format!("guest-initramfs{}", kernel.choice().suffix()),
        &inputs,
        p.say,
        |dir| {
            let archive = base(kernel, INIT)?;
            Ok(fs::write(dir.join("initramfs.cpio"), archive.finish())?)
        },
    )?;
    Ok(dir.join("initramfs.cpio"))
}

/// An initramfs with busybox, all prepared modules, the usual mount points, and the script `init`.
pub(crate) fn base(kernel: &Kernel, init: &str) -> Result<Archive> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "proc", "sys", "tmp", "run", "root", "mnt"] {
        archive.directory(dir);
    }
    archive.copy("bin/busybox", 0o755, &kernel.busybox())?;
    // The kernel runs /sbin/modprobe.
    archive.symlink("sbin", "bin");
    archive.copy_tree("lib/modules", &kernel.modules().join("lib/modules"))?;
    archive.file("init", 0o755, init.as_bytes());
    Ok(archive)
}
