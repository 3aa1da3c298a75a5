//! One run of a pair, from its empty directory to the printed report: with the micro-guest or a stock Debian, judged or
//! interactive. `cargo xtask run-pair` is its command line.

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

/// What a run needs beside the pair's configuration.
#[derive(Clone)]
pub struct Run<'a> {
    /// Shows the progress.
    pub terminal: &'a Terminal,
    /// Set when the run is to end early.
    pub stop: Arc<AtomicBool>,
    /// Keep the logs and the disk even if the run was good.
    pub keep: bool,
    /// Write the report to this file as well.
    pub json: Option<&'a Path>,
}

impl Run<'_> {
    /// Runs a pair with the micro-guest, and prints the report.
    ///
    /// # Errors
    /// The run cannot be judged: the pair does not come up, or gets stuck.
    pub fn micro(&self, config: &PairConfig, load: Load) -> Result<RunReport> {
        self.in_directory(|dir| micro::run(self, config, load, dir))
    }

    /// Runs a pair with the stock Debian guest and this many clients, and prints the report.
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

    /// Connects the micro-guest's console with the terminal, without load and judge.
    ///
    /// # Errors
    /// The pair does not come up, or the terminal cannot be used.
    pub fn play_micro(&self, config: &PairConfig) -> Result<()> {
        self.play(|dir| interactive::run(self, config, dir))
    }

    /// Connects the Debian guest's console with the terminal, without load and judge.
    ///
    /// # Errors
    /// As [`play_micro`](Self::play_micro).
    pub fn play_linux(&self, files: &LinuxFiles, config: &PairConfig) -> Result<()> {
        self.play(|dir| linux::play(self, files, config, dir))
    }

    /// What a pair in `dir` needs of this run.
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

    /// Runs `work` in a directory of its own, which is removed at the end in any case.
    fn play(&self, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let dir = directory()?;
        self.terminal.finish();
        work(dir.path())
    }

    /// Runs `work` in a directory of its own, which stays when something broke; prints the report.
    fn in_directory(&self, work: impl FnOnce(&Path) -> Result<RunReport>) -> Result<RunReport> {
        let dir = directory()?;
        let result = work(dir.path());
        self.terminal.finish();
        let held = result.as_ref().is_ok_and(RunReport::held);
        // After Ctrl-C nothing is kept.
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
