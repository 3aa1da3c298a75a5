//! Reads files that the command line names.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Reads a regular file as text. Other kinds are refused: a FIFO may never get a writer, and a
/// device may be endless.
///
/// # Errors
/// The path does not name a regular file, or its text is not UTF-8.
pub fn text(path: &Path) -> Result<String> {
    let shown = path.display();
    let found = fs::metadata(path).with_context(|| format!("cannot read {shown}"))?;
    ensure!(found.is_file(), "cannot read {shown}: expected a regular file, found something else");
    fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))
}
