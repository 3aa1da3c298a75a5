//! Mutants that nobody finds, and why that is right: `argued.toml`.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::sites::Mutant;

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Argued {
    #[serde(default)]
    mutant: Vec<Argument>,
}

/// One argument, for all mutants that fit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Argument {
    file: String,
    /// The function, or the end of its path; any, where it is left out.
    #[serde(default)]
    function: String,
    /// A part of what stands there; any, where it is left out.
    #[serde(default)]
    code: String,
    /// A part of what it becomes.
    #[serde(default)]
    becomes: String,
    why: String,
}

impl Argued {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    pub(crate) fn why(&self, mutant: &Mutant) -> Option<&str> {
        let fits = |one: &&Argument| {
            mutant.file == one.file
                && mutant.function.ends_with(&one.function)
                && mutant.code.contains(&one.code)
                && mutant.becomes.contains(&one.becomes)
        };
        self.mutant.iter().find(fits).map(|one| one.why.as_str())
    }
}
