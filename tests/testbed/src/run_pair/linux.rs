//! A run with the stock Debian guest, on a `/dev/kvm` that runs stock kernels: the machine's own,
//! or the nested lab's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use xtask_common::build;

use super::Run;
use crate::guest::LinuxGuest;
use crate::linux;
use crate::pair::config::{GuestConfig, PairConfig};
use crate::pair::report::{RunReport, TABLE_HEAD};
use crate::pair::{self, Progress};
use crate::switch::Switch;

/// Default memory of the guest in MiB. A stock kernel with Redis needs more than the micro-guest.
const MEMORY: u64 = 128;
/// Number of operations that must be answered after a fault: fewer than with the micro-guest,
/// because Redis with `appendfsync always` is slower.
pub const OPERATIONS_AFTER: u64 = 40;
/// The file name of the guest's root file system in the nested lab.
pub const ROOT: &str = "root.ext4";

/// The programs and images of a run.
#[derive(Debug)]
pub struct LinuxFiles {
    /// The `kemari` binary.
    pub kemari: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    root: PathBuf,
    /// Whether the root file system is a copy for this run.
    own_root: bool,
}

impl LinuxFiles {
    /// The files in the cache, which must not change.
    #[must_use]
    pub fn cached(kemari: PathBuf, guest: &LinuxGuest) -> Self {
        Self {
            kemari,
            kernel: guest.vmlinuz.clone(),
            initramfs: guest.initramfs.clone(),
            root: guest.rootfs.clone(),
            own_root: false,
        }
    }

    /// The files in the nested lab.
    #[must_use]
    pub fn prebuilt(dir: &Path) -> Self {
        Self {
            kemari: dir.join("kemari"),
            kernel: dir.join("vmlinuz"),
            initramfs: dir.join("initramfs.cpio"),
            root: dir.join(ROOT),
            own_root: true,
        }
    }

    /// The configuration of the guest, with `memory` in MiB.
    #[must_use]
    pub fn guest(&self, memory: Option<u64>, cpus: u32) -> GuestConfig {
        let memory = memory.unwrap_or(MEMORY);
        linux::guest(self.kernel.clone(), self.initramfs.clone(), memory, cpus)
    }

    fn make_disk(&self, image: &Path) -> Result<()> {
        if self.own_root {
            return std::fs::rename(&self.root, image).with_context(|| {
                format!(
                    "cannot move {} to {}: set TMPDIR to the same file system",
                    self.root.display(),
                    image.display()
                )
            });
        }
        build::run(Command::new("cp").args(["--sparse=always"]).arg(&self.root).arg(image))
    }
}

/// Runs the pair with its files in `dir`.
pub(super) fn run(
    of: &Run<'_>,
    files: &LinuxFiles,
    config: &PairConfig,
    clients: u32,
    dir: &Path,
) -> Result<RunReport> {
    let image = dir.join("disk.img");
    files.make_disk(&image)?;
    let switch = Switch::new(dir, &["a", "b"]).context("cannot make the switch")?;
    let mut observer = linux::observer(switch.plug_in(), clients, config.seed, &image);
    of.terminal.line(TABLE_HEAD);
    let context = of.context(config, dir, &switch, None);
    pair::run(&context, &mut observer)
}

/// Runs the pair interactively, with its files in `dir`.
pub(super) fn play(
    of: &Run<'_>,
    files: &LinuxFiles,
    config: &PairConfig,
    dir: &Path,
) -> Result<()> {
    files.make_disk(&dir.join("disk.img"))?;
    super::interactive::run(of, config, dir)
}
