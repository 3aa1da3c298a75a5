//! All benchmarking: measures a pair side by side with the limits of its machine and with QEMU;
//! prints reports, draws curves and compares figures. `cargo xtask bench` is its command line.
//!
//! This crate may not depend on a crate of the product: it measures the product from outside, as a
//! process of the testbed.

mod compare;
mod data;
mod measure;
mod peer;
mod plot;
mod report;
mod run;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use kemari_testbed::terminal::Terminal;
use xtask_common::{given_file, report_file};

use crate::data::Report;

/// What to do: to measure, unless something else is asked for.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(flatten)]
    measure: Measure,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to measure.
#[derive(Debug, Args)]
struct Measure {
    /// Take a shorter measurement of each part, in under two minutes. QEMU is left out unless
    /// --only names `peers`.
    #[arg(long)]
    quick: bool,
    /// Write the report to this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the curves into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
    /// Measure only these parts: checkpoint, cpus, requests, disk, guest, idle, memory, takeover,
    /// peers.
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<String>,
    /// Measure this program, instead of building it.
    #[arg(long, value_name = "FILE")]
    kemari: Option<PathBuf>,
    /// Further flags for `kemari run` and `kemari standby`.
    #[arg(last = true)]
    flags: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare two reports, and fail if the second is worse by more than the noise.
    Compare(compare::Arguments),
    /// Print an existing report.
    Show(Show),
}

/// What to make of a report.
#[derive(Debug, Args)]
struct Show {
    /// What `cargo xtask bench --json` wrote.
    file: PathBuf,
    /// Draw the curves into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
    /// Put the report into this document, between `<!-- bench: begin -->` and `<!-- bench: end
    /// -->`.
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

/// Runs the command; `false` if a figure got worse.
///
/// # Errors
/// A figure cannot be measured, or a file cannot be read or written.
pub fn run(arguments: &Arguments) -> Result<bool> {
    match &arguments.command {
        None => measure(&arguments.measure),
        Some(Command::Compare(it)) => compare::run(&it.a, &it.b, it.tolerance),
        Some(Command::Show(it)) => show(it),
    }
}

/// Makes a short run of everything: writes the report, reads it, draws it and compares it with
/// itself. No speed is judged.
///
/// # Errors
/// A part cannot be measured, or measures nothing.
pub fn prove() -> Result<bool> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("report.json");
    let wanted = Measure {
        quick: true,
        json: Some(json.clone()),
        plots: Some(dir.path().join("plots")),
        only: Vec::new(),
        kemari: None,
        flags: Vec::new(),
    };
    let measured = measure(&wanted)?;
    let found = report::read(&json)?;
    let empty = found.groups.iter().find(|group| group.rows.is_empty());
    ensure!(empty.is_none(), "expected figures in every group, found none in {empty:?}");
    Ok(measured && compare::run(&json, &json, 0.0)?)
}

/// Measures; prints and writes the report. A missed target is reported and is not a failure,
/// because machines differ.
fn measure(wanted: &Measure) -> Result<bool> {
    let terminal = Terminal::new(true);
    wanted.json.as_deref().map_or(Ok(()), report_file::check).context("--json")?;
    wanted.plots.as_deref().map_or(Ok(()), check_directory)?;
    let found = run::run(wanted, &terminal);
    terminal.finish();
    let found = found?;
    print!("{}", report::print(&found));
    if let Some(path) = &wanted.json {
        let text = serde_json::to_string_pretty(&found)?;
        report_file::write(path, text).context("--json")?;
    }
    draw(&found, wanted.plots.as_deref())?;
    Ok(true)
}

/// Checks that curves can be drawn into a directory. Call it before the measurements for the
/// curves.
fn check_directory(path: &Path) -> Result<()> {
    ensure!(
        path.is_dir() || !path.exists(),
        "--plots: expected a directory, or a name that is free, found a file at {}",
        path.display()
    );
    Ok(())
}

fn draw(found: &Report, directory: Option<&Path>) -> Result<()> {
    let Some(directory) = directory else { return Ok(()) };
    for path in plot::write_all(found, directory)? {
        println!("wrote {}", path.display());
    }
    Ok(())
}

fn show(show: &Show) -> Result<bool> {
    let found = report::read(&show.file)?;
    print!("{}", report::print(&found));
    draw(&found, show.plots.as_deref())?;
    if let Some(path) = &show.document {
        let text = given_file::text(path).context("--document")?;
        let text = report::replace_section(&text, &report::markdown(&found))
            .with_context(|| format!("cannot put the report into {}", path.display()))?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(true)
}
