//! `cargo xtask bench`: how fast a pair is, side by side with the limits of the machine it runs on.

mod compare;
#[allow(dead_code, reason = "the run that calls it comes with the rest of the suite")]
mod peer;
mod plot;
mod report;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

/// What to do.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put two reports side by side, and fail when the second is worse by more than the noise.
    Compare(compare::Arguments),
    /// Print a report that was written before.
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
    /// Put the report into this document, between `<!-- bench: begin -->` and `<!-- bench: end -->`.
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

/// Runs the command; `false` when something got worse.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    match &arguments.command {
        Command::Compare(it) => compare::run(&it.a, &it.b, it.tolerance),
        Command::Show(it) => show(it),
    }
}

fn show(show: &Show) -> Result<bool> {
    let found = report::read(&show.file)?;
    print!("{}", report::print(&found));
    if let Some(directory) = &show.plots {
        for path in plot::write_all(&found, directory)? {
            println!("wrote {}", path.display());
        }
    }
    if let Some(path) = &show.document {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the document {}", path.display()))?;
        let text = report::replace_section(&text, &report::markdown(&found))
            .with_context(|| path.display().to_string())?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(true)
}
