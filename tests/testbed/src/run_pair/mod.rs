//! A run of a pair, from its empty directory to the printed report. The guest is the micro-guest or
//! a stock Debian; the run is judged or interactive. `cargo xtask run-pair` is its command line.

mod interactive;
mod linux;
mod micro;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use xtask_common::report_file;

use crate::micro::Load;
use crate::pair::RunContext;
use crate::pair::config::PairConfig;
use crate::pair::report::RunReport;
use crate::small_disk::SmallDisk;
use crate::switch::Switch;
use crate::terminal::Terminal;
pub use linux::{LinuxFiles, OPERATIONS_AFTER, ROOT};

/// The options of a run beside the pair's configuration.
#[derive(Clone)]
pub struct Run<'a> {
    /// Shows the progress.
    pub terminal: &'a Terminal,
    /// Set to end the run early.
    pub stop: Arc<AtomicBool>,
    /// Whether to keep the logs and the disk even without a violation.
    pub keep: bool,
    /// The file for the report as JSON, if any.
    pub json: Option<&'a Path>,
}

impl Run<'_> {
    /// Runs a pair with the micro-guest, and prints the report.
    ///
    /// # Errors
    /// The run cannot be judged: the pair does not start, or makes no progress.
    pub fn micro(&self, config: &PairConfig, load: Load) -> Result<RunReport> {
        self.in_directory(|dir| micro::run(self, config, load, dir))
    }

    /// Runs a pair with the stock Debian guest and `clients` clients, and prints the report.
    ///
    /// # Errors
    /// As [`micro`](Self::micro).
    pub fn linux(
        &self,
        files: &LinuxFiles,
        config: &PairConfig,
        clients: u32,
    ) -> Result<RunReport> {
        self.in_directory(|dir| linux::run(self, files, config, clients, dir))
    }

    /// Connects the micro-guest's console to the terminal. The run has no load and no judgement.
    ///
    /// # Errors
    /// The pair does not start, or the terminal cannot be used.
    pub fn play_micro(&self, config: &PairConfig) -> Result<()> {
        self.play(|dir| interactive::run(self, config, dir))
    }

    /// Connects the Debian guest's console to the terminal. The run has no load and no judgement.
    ///
    /// # Errors
    /// As [`play_micro`](Self::play_micro).
    pub fn play_linux(&self, files: &LinuxFiles, config: &PairConfig) -> Result<()> {
        self.play(|dir| linux::play(self, files, config, dir))
    }

    /// The inputs of a run of a pair in `dir`.
    fn context<'c>(
        &'c self,
        config: &'c PairConfig,
        dir: &'c Path,
        switch: &'c Switch,
        small_disk: Option<&'c SmallDisk>,
    ) -> RunContext<'c> {
        let stop = Arc::clone(&self.stop);
        RunContext { config, dir, switch, small_disk, progress: self.terminal, stop }
    }

    /// Runs `work` in a new directory, which is always removed at the end.
    fn play(&self, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let dir = directory()?;
        self.terminal.finish();
        work(dir.path())
    }

    /// Runs `work` in a new directory and prints the report. The directory is kept if the report
    /// has a violation.
    fn in_directory(&self, work: impl FnOnce(&Path) -> Result<RunReport>) -> Result<RunReport> {
        let dir = directory()?;
        let result = work(dir.path());
        self.terminal.finish();
        let held = result.as_ref().is_ok_and(RunReport::held);
        // Keep nothing after Ctrl-C, unless the user asked for it.
        let interrupted = self.stop.load(Ordering::SeqCst);
        if self.keep || !held && !interrupted {
            println!("logs, serial lines and the disk are kept in {}", dir.keep().display());
        }
        let report = result?;
        println!("\n{report}");
        if let Some(path) = self.json {
            let text = serde_json::to_string_pretty(&report)?;
            report_file::write(path, text).context("--json")?;
        }
        Ok(report)
    }
}

fn directory() -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("kemari-pair-").tempdir();
    dir.context("cannot make a directory for the run; TMPDIR names another place")
}
