//! The results of faults. Each is a line in a file, so that an interrupted run can be continued.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::outcome::Line;
use crate::reasons::Reasons;
use crate::roles;
use crate::scenario::Cell;

/// The first characters of each line.
const BEGIN: &str = r#"{"side":"#;

/// A fault by the role of its thread.
pub(crate) type RoleCall = (Option<&'static str>, String, String);

/// All results, and the file to which they are appended.
#[derive(Debug)]
pub(crate) struct Results(Mutex<(Vec<Line>, Option<File>)>);

impl Results {
    /// Opens the file of results, and reads the results in it.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self(Mutex::new((Vec::new(), None)))) };
        let context = || format!("--results {}", path.display());
        let text = match path.exists() {
            true => std::fs::read_to_string(path).with_context(context)?,
            false => String::new(),
        };
        let lines = read(&text).with_context(|| {
            format!(
                "{}: expected results of `cargo xtask faults`, found other \
        text",
                context()
            )
        })?;
        let mut file =
            File::options().create(true).append(true).open(path).with_context(context)?;
        if !text.is_empty() && !text.ends_with('\n') {
            writeln!(file).with_context(context)?;
        }
        Ok(Self(Mutex::new((lines, Some(file)))))
    }

    pub(crate) fn has(&self, cell: &Cell) -> bool {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.0.iter().any(|line| line.is_of(cell) && line.outcome.is_made())
    }

    /// The faults that were already injected, in any thread.
    pub(crate) fn calls(&self) -> BTreeSet<RoleCall> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let made = held.0.iter().filter(|line| line.outcome.is_made());
        made.map(|line| (roles::role(&line.thread), line.call.clone(), line.fault.clone()))
            .collect()
    }

    /// Stores and prints a result.
    pub(crate) fn add(&self, line: Line, reasons: &Reasons) {
        let outcome = line.outcome.describe(reasons.is_broken(&line));
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Line { side, thread, call, fault, phase, .. } = &line;
        println!("{side} {thread} {call} {fault} ({phase}): {outcome}");
        if let (Some(file), Ok(text)) = (&mut held.1, serde_json::to_string(&line))
            && let Err(error) = writeln!(file, "{text}")
        {
            eprintln!("--results: {error}");
        }
        held.0.push(line);
    }

    /// All results, in order.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// The last result of each fault.
    pub(crate) fn into_lines(self) -> Vec<Line> {
        let lines = self.0.into_inner().unwrap_or_else(PoisonError::into_inner).0;
        let by_fault = lines.into_iter().map(|line| {
            let of = [&line.side, &line.thread, &line.call, &line.fault].map(Clone::clone);
            (of, line)
        });
        by_fault.collect::<BTreeMap<_, _>>().into_values().collect()
    }
}

/// Reads the lines. A killed run may have left an incomplete last line.
fn read(text: &str) -> serde_json::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(line) => lines.push(line),
            Err(_) if line.starts_with(BEGIN) || BEGIN.starts_with(line) => {
                eprintln!(
                    "--results: line {} is incomplete; its fault is injected again",
                    number + 1
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const LINE: &str = r#"{"side":"primary","thread":"disk","call":"fsync","fault":"hang","phase":"work","outcome":{"what":"went on","violations":[],"said":[]}}"#;

    #[test]
    fn a_torn_line_is_left_out_and_what_is_no_result_is_refused() {
        for end in [1, 10, LINE.len() - 1] {
            let text = format!("{LINE}\n{}\n{LINE}\n", &LINE[..end]);
            assert_eq!(read(&text).unwrap().len(), 2, "{end}");
        }
        assert!(read("somebody's notes").is_err());
    }
}
