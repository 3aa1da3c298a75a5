//! A run with the micro-guest.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use super::Run;
use crate::micro::{self, Load, MicroObserver};
use crate::pair::config::{Kill, PairConfig};
use crate::pair::report::{RunReport, TABLE_HEAD};
use crate::pair::{self, Progress};
use crate::small_disk::SmallDisk;
use crate::switch::Switch;

/// Runs the pair with its files in `dir`.
pub(super) fn run(of: &Run<'_>, config: &PairConfig, load: Load, dir: &Path) -> Result<RunReport> {
    let image = dir.join("disk.img");
    let fills = config.kills.contains(&Kill::DiskFull);
    let small_disk = fills.then(|| small_disk(dir, &image)).transpose()?;
    let disk = File::create(&image).and_then(|disk| disk.set_len(micro::DISK_BYTES));
    disk.with_context(|| format!("cannot make {}", image.display()))?;
    let switch = Switch::new(dir, &["a", "b"]).context("cannot make the switch")?;
    let mut observer = MicroObserver::start(switch.plug_in(), load, &image)?;
    of.terminal.line(TABLE_HEAD);
    let context = of.context(config, dir, &switch, small_disk.as_ref());
    pair::run(&context, &mut observer)
}

/// Mounts a file system of limited size, and links `image` into it.
fn small_disk(dir: &Path, image: &Path) -> Result<SmallDisk> {
    let at = dir.join("small-disk");
    let disk = SmallDisk::mount(&at, micro::DISK_BYTES).context("--kill disk-full")?;
    std::os::unix::fs::symlink(at.join("disk.img"), image).context("cannot link the image")?;
    Ok(disk)
}
