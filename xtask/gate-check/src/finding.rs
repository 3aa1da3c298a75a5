//! A finding: its place, its rule, the reason for the rule, and how to do it right.

use std::path::PathBuf;

use serde::Serialize;

use super::layer::Layer;
use super::rules::Rule;

/// A place in a file, relative to the root of the workspace where possible.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Place {
    /// The file.
    pub(crate) file: PathBuf,
    /// Counted from 1.
    pub(crate) line: usize,
    /// Counted from 1; 1 where it is not known.
    pub(crate) column: usize,
}

impl Place {
    /// A place at a line of a file.
    pub(crate) fn line(file: impl Into<PathBuf>, line: usize) -> Self {
        Self { file: file.into(), line, column: 1 }
    }
}

/// One breach of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Finding {
    /// The layer that found it.
    pub(crate) layer: Layer,
    /// Its place, if it is in a file.
    pub(crate) place: Option<Place>,
    /// The stable name of the rule.
    pub(crate) rule: &'static str,
    /// What was found.
    pub(crate) what: String,
    /// Why the rule is there.
    pub(crate) why: &'static str,
    /// How to do it right.
    pub(crate) instead: &'static str,
}

impl Finding {
    pub(crate) fn new(rule: &'static Rule, place: Option<Place>, what: impl Into<String>) -> Self {
        Self {
            layer: rule.layer,
            place,
            rule: rule.id,
            what: what.into(),
            why: rule.why,
            instead: rule.instead,
        }
    }

    /// All texts of the finding, to search in.
    pub(crate) fn text(&self) -> String {
        format!("{}: {}. {} {}", self.rule, self.what, self.why, self.instead)
    }

    /// The same breach, reported by another layer.
    pub(crate) fn seen_by(mut self, layer: Layer) -> Self {
        self.layer = layer;
        self
    }
}

/// The result of a layer.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It checked everything.
    Looked(Vec<Finding>),
    /// It could not check, because the code does not compile: `types` says where.
    NotReached(String),
    /// It could not run: a tool is missing, a file cannot be read.
    Broken(String),
}

impl Outcome {
    pub(crate) fn findings(&self) -> &[Finding] {
        match self {
            Self::Looked(findings) => findings,
            Self::NotReached(_) | Self::Broken(_) => &[],
        }
    }
}
