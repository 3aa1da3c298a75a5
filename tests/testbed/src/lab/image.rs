//! The initramfs of the nested lab's emulated host: busybox, kernel modules (kvm-amd and network),
//! and a script that runs the caller's command.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::guest::Preparation;
use crate::guest::cache::sha256_text;
use crate::guest::initramfs::base;
use crate::guest::kernel::Kernel;

const INIT: &str = include_str!("../../../guests/linux/lab-init");

/// Makes the initramfs, or takes it from the cache. Returns its path.
pub(super) fn prepare(p: &Preparation<'_>, kernel: &Kernel) -> Result<PathBuf> {
    let mut inputs = kernel.inputs();
    inputs.insert("init".into(), sha256_text(INIT));
    inputs.insert("recipe".into(), sha256_text(include_str!("image.rs")));
    let dir = p.cache.artefact("lab-initramfs", &inputs, p.say, |dir| {
        let mut archive = base(kernel, INIT)?;
        for mount_point in ["scratch", "debian", "etc", "var"] {
            archive.directory(mount_point);
        }
        archive.symlink("var/run", "/run");
        // The lab mounts the guest's image at /debian. Its dynamically linked programs expect their
        // loader and libraries at these paths.
        for (link, target) in [
            ("lib64", "/debian/usr/lib64"),
            ("lib/x86_64-linux-gnu", "/debian/usr/lib/x86_64-linux-gnu"),
            ("usr/lib/x86_64-linux-gnu", "/debian/usr/lib/x86_64-linux-gnu"),
            ("etc/ld.so.cache", "/debian/etc/ld.so.cache"),
        ] {
            archive.symlink(link, target);
        }
        archive.file("etc/passwd", 0o644, b"root::0:0:root:/:/bin/sh\n");
        archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n");
        Ok(fs::write(dir.join("initramfs.cpio"), archive.finish())?)
    })?;
    Ok(dir.join("initramfs.cpio"))
}
