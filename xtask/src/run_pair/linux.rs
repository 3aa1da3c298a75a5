//! A run with the stock Debian guest on a `/dev/kvm` that can run it: the machine's own, or the nested lab's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use kemari_testbed::linux;
use kemari_testbed::pair::config::PairConfig;
use kemari_testbed::pair::report::{RunReport, TABLE_HEAD};
use kemari_testbed::pair::{self, Progress, Surroundings};
use kemari_testbed::switch::Switch;

use super::Arguments;
use super::progress::Terminal;
use crate::guest::LinuxGuest;
use crate::{build, stop};

/// A stock kernel with Redis needs more than the micro-guest.
const MEMORY: u64 = 128;
/// Redis with `appendfsync always` does fewer operations than the micro-guest.
const OPERATIONS_AFTER: u64 = 40;

/// The programs and images of a run.
pub(super) struct Files {
    kemari: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    root: PathBuf,
    /// The root file system is a copy already, made for this run.
    own_root: bool,
}

impl Files {
    /// Files of the cache, which must not change.
    pub(super) fn cached(kemari: PathBuf, guest: &LinuxGuest) -> Self {
        Self {
            kemari,
            kernel: guest.vmlinuz.clone(),
            initramfs: guest.initramfs.clone(),
            root: guest.rootfs.clone(),
            own_root: false,
        }
    }

    /// Files as the nested lab has them.
    pub(super) fn prebuilt(dir: &Path) -> Self {
        Self {
            kemari: dir.join("kemari"),
            kernel: dir.join("vmlinuz"),
            initramfs: dir.join("initramfs.cpio"),
            root: dir.join(super::lab::ROOT),
            own_root: true,
        }
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

/// Runs it in `dir`.
pub(super) fn run(
    arguments: &Arguments,
    files: &Files,
    dir: &Path,
    terminal: &Terminal,
    stop: stop::Flag,
) -> Result<RunReport> {
    let image = dir.join("disk.img");
    files.make_disk(&image)?;
    let config = &config(arguments, files)?;
    let switch = Switch::new(dir, &["a", "b"]).context("cannot make the switch")?;
    let mut observer = linux::observer(switch.plug_in(), arguments.writers, arguments.seed, &image);
    terminal.line(TABLE_HEAD);
    let surroundings =
        Surroundings { config, dir, switch: &switch, small_disk: None, progress: terminal, stop };
    pair::run(&surroundings, &mut observer)
}

/// Runs it interactively in `dir`.
pub(super) fn play(
    arguments: &Arguments,
    files: &Files,
    dir: &Path,
    terminal: &Terminal,
    stop: stop::Flag,
) -> Result<()> {
    files.make_disk(&dir.join("disk.img"))?;
    let mut config = config(arguments, files)?;
    config.guest.boots_protected = true;
    super::interactive::run(&config, dir, terminal, stop)
}

fn config(arguments: &Arguments, files: &Files) -> Result<PairConfig> {
    let memory = arguments.memory.unwrap_or(MEMORY);
    let guest = linux::guest(files.kernel.clone(), files.initramfs.clone(), memory, arguments.cpus);
    arguments.config(files.kemari.clone(), guest, OPERATIONS_AFTER)
}
