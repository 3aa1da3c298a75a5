//! A run with the micro-guest.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use kemari_tests::micro::{self, MicroObserver};
use kemari_tests::pair::config::PairConfig;
use kemari_tests::pair::report::{RunReport, TABLE_HEAD};
use kemari_tests::pair::{self, Progress, Surroundings};
use kemari_tests::switch::Switch;

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
    let disk = File::create(&image).and_then(|disk| disk.set_len(micro::DISK_BYTES));
    disk.with_context(|| format!("cannot make {}", image.display()))?;
    let switch = Switch::new(dir, &["a", "b"]).context("cannot make the switch")?;
    let mut observer = MicroObserver::start(switch.plug_in(), arguments.micro_load(), &image)?;
    terminal.line(TABLE_HEAD);
    let surroundings = Surroundings { config, dir, switch: &switch, progress: terminal, stop };
    pair::run(&surroundings, &mut observer)
}
