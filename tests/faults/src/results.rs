//! What came of faults, kept in a file line by line, so that a run can be gone on with.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::judge::Outcome;
use crate::life::Cell;

/// One fault, and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) side: String,
    pub(crate) thread: String,
    pub(crate) call: String,
    pub(crate) fault: String,
    pub(crate) phase: String,
    pub(crate) outcome: Outcome,
}

impl Line {
    pub(crate) fn new(cell: &Cell, outcome: Outcome) -> Self {
        Self {
            side: cell.seen.side.name().to_owned(),
            thread: cell.seen.thread.clone(),
            call: cell.seen.call.name(),
            fault: cell.fault.name().to_owned(),
            phase: cell.phase.name().to_owned(),
            outcome,
        }
    }

    fn is_of(&self, cell: &Cell) -> bool {
        self.side == cell.seen.side.name()
            && self.thread == cell.seen.thread
            && self.call == cell.seen.call.name()
            && self.fault == cell.fault.name()
    }
}

/// All of them, and the file that they go to.
#[derive(Debug)]
pub(crate) struct Results(Mutex<(Vec<Line>, Option<File>)>);

impl Results {
    /// Reads what is there already.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self(Mutex::new((Vec::new(), None)))) };
        let context = || format!("--results {}", path.display());
        let text = match path.exists() {
            true => std::fs::read_to_string(path).with_context(context)?,
            false => String::new(),
        };
        let lines: Result<Vec<Line>, _> = text.lines().map(serde_json::from_str).collect();
        let lines = lines.with_context(|| format!("{}: these are no results", context()))?;
        let file = File::options().create(true).append(true).open(path).with_context(context)?;
        Ok(Self(Mutex::new((lines, Some(file)))))
    }

    pub(crate) fn has(&self, cell: &Cell) -> bool {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.0.iter().any(|line| line.is_of(cell))
    }

    /// Notes and prints one.
    pub(crate) fn add(&self, line: Line) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Line { side, thread, call, fault, phase, outcome } = &line;
        println!("{side} {thread} {call} {fault} ({phase}): {outcome}");
        if let (Some(file), Ok(text)) = (&mut held.1, serde_json::to_string(&line))
            && let Err(error) = writeln!(file, "{text}")
        {
            eprintln!("--results: {error}");
        }
        held.0.push(line);
    }

    pub(crate) fn into_lines(self) -> Vec<Line> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).0
    }
}
