//! The result of a fault, and its line in the file of results.

use serde::{Deserialize, Serialize};

use crate::scenario::Cell;

/// The result of a fault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The words for the table.
    pub(crate) what: String,
    /// Broken promises.
    pub(crate) violations: Vec<String>,
    /// Promises that seemed broken in a first, shorter run: they hold only within a bound, and held
    /// after a wait for that bound.
    #[serde(default)]
    pub(crate) at_first: Vec<String>,
    /// The last lines of the sides that ended.
    pub(crate) said: Vec<String>,
}

impl Outcome {
    /// The result for people. `is_broken` marks a broken promise as a violation; otherwise an
    /// argument says that the result is right.
    pub(crate) fn describe(&self, is_broken: bool) -> String {
        let violation = if is_broken { "VIOLATION" } else { "accepted" };
        let mut text = self.what.clone();
        text.extend(self.violations.iter().map(|what| format!("; {violation}: {what}")));
        text.extend(self.at_first.iter().map(|what| format!("; at first: {what}")));
        text.extend(self.said.iter().map(|said| format!(" ({said})")));
        text
    }

    /// Whether the fault was injected.
    pub(crate) fn is_made(&self) -> bool {
        !self.what.starts_with(NOT_REACHED)
    }
}

/// The table's words for a fault whose call did not happen this time.
pub(crate) const NOT_REACHED: &str = "not reached";

/// A fault and its result.
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

    /// Whether it is the result of this fault.
    pub(crate) fn is_of(&self, cell: &Cell) -> bool {
        self.side == cell.seen.side.name()
            && self.thread == cell.seen.thread
            && self.call == cell.seen.call.name()
            && self.fault == cell.fault.name()
    }
}
