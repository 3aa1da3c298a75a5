//! The benchmark: runs real pairs with the micro-guest, and measures them side by side with the
//! limits of the machine.

mod guest;
mod limits;
mod load;
mod pages;
mod service;
mod system;
mod takeover;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari_testbed::pair::Progress;

use crate::data::Group;
use system::{Mode, SystemConfig};

/// What to measure, and how long.
pub(crate) struct Bench<'a> {
    /// The `kemari` binary.
    pub(crate) kemari: &'a Path,
    /// The micro-guest.
    pub(crate) kernel: &'a Path,
    /// Whether to measure in less than two minutes.
    pub(crate) quick: bool,
    /// Further flags of `kemari run` and `kemari standby`.
    pub(crate) flags: &'a [String],
    /// Receives the progress.
    pub(crate) progress: &'a dyn Progress,
    /// Set when the run must end early.
    pub(crate) stop: Arc<AtomicBool>,
}

type Measure = fn(&Bench<'_>) -> Result<Vec<Group>>;

/// The parts of the benchmark, by name.
pub(crate) const PARTS: [(&str, Measure); 8] = [
    ("checkpoint", |bench| pages::by_pages(bench).map(|(pages, limits)| vec![limits, pages])),
    ("cpus", |bench| pages::by_cpus(bench).map(|group| vec![group])),
    ("requests", |bench| service::network(bench).map(|group| vec![group])),
    ("disk", |bench| service::disk(bench).map(|group| vec![group])),
    ("guest", |bench| guest::progress(bench).map(|group| vec![group])),
    ("idle", |bench| guest::idle(bench).map(|group| vec![group])),
    ("memory", |bench| pages::by_memory(bench).map(|group| vec![group])),
    ("takeover", |bench| takeover::takeover(bench).map(|group| vec![group])),
];

/// A number with its noun: `1 page`, `16 pages`.
fn counted(count: impl Into<u64>, noun: &str) -> String {
    let count = count.into();
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Checks the names of parts.
///
/// # Errors
/// The first unknown name.
pub(crate) fn check_parts(wanted: &[String]) -> Result<()> {
    let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
    for name in wanted {
        let known = names.contains(&name.as_str());
        ensure!(known, "--only: expected {} or peers, found `{name}`", names.join(", "));
    }
    Ok(())
}

impl Bench<'_> {
    /// Measures the parts in `wanted`, or all parts if it is empty.
    ///
    /// # Errors
    /// A name is unknown, or a part cannot be measured.
    pub(crate) fn run(&self, wanted: &[String]) -> Result<Vec<Group>> {
        check_parts(wanted)?;
        let mut groups = Vec::new();
        for (name, measure) in PARTS {
            if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
                ensure!(!self.stop.load(Ordering::SeqCst), "interrupted");
                groups.extend(measure(self).with_context(|| format!("cannot measure `{name}`"))?);
            }
        }
        Ok(groups)
    }

    fn system(&self, mode: Mode, memory: u64, cpus: u32) -> SystemConfig {
        SystemConfig {
            kemari: self.kemari.to_owned(),
            kernel: self.kernel.to_owned(),
            mode,
            memory,
            cpus,
            guest: "",
            flags: self.flags.to_vec(),
        }
    }

    /// The duration of each load.
    fn stretch(&self) -> Duration {
        if self.quick { Duration::from_millis(800) } else { Duration::from_secs(4) }
    }

    /// The number of turns of the compared configurations.
    fn turns(&self) -> u32 {
        if self.quick { 1 } else { 3 }
    }
}
