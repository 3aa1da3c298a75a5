//! A run with the micro-guest.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use kemari_testbed::micro::{self, MicroObserver};
use kemari_testbed::pair::config::{Kill, PairConfig};
use kemari_testbed::pair::report::{RunReport, TABLE_HEAD};
use kemari_testbed::pair::{self, Progress, Surroundings};
use kemari_testbed::small_disk::SmallDisk;
use kemari_testbed::switch::Switch;

use super::Arguments;
use super::progress::Terminal;
use crate::stop;

/// Runs it in `dir`.
pub(super) fn run(
    arguments: &Arguments,
    config: &PairConfig,
    dir: &Path,
    terminal: &Terminal,
    stop: stop::Flag,
) -> Result<RunReport> {
    let image = dir.join("disk.img");
    let fills = config.kills.contains(&Kill::DiskFull);
    let small_disk = fills.then(|| small_disk(dir, &image)).transpose()?;
    let disk = File::create(&image).and_then(|disk| disk.set_len(micro::DISK_BYTES));
    disk.with_context(|| format!("cannot make {}", image.display()))?;
    let switch = Switch::new(dir, &["a", "b"]).context("cannot make the switch")?;
    let mut observer = MicroObserver::start(switch.plug_in(), arguments.micro_load(), &image)?;
    terminal.line(TABLE_HEAD);
    let small_disk = small_disk.as_ref();
    let surroundings =
        Surroundings { config, dir, switch: &switch, small_disk, progress: terminal, stop };
    pair::run(&surroundings, &mut observer)
}

/// A file system that can be filled, with the image in it.
fn small_disk(dir: &Path, image: &Path) -> Result<SmallDisk> {
    let at = dir.join("small-disk");
    let disk = SmallDisk::mount(&at, micro::DISK_BYTES).context("--kill disk-full")?;
    std::os::unix::fs::symlink(at.join("disk.img"), image).context("cannot link the image")?;
    Ok(disk)
}
