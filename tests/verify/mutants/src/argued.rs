//! Mutants that no judge finds, with the reason why that is right (`argued.toml`).

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::sites::Mutant;

/// The contents of `argued.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Argued {
    #[serde(default)]
    mutant: Vec<Argument>,
}

/// An argument for all mutants that it fits.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Argument {
    file: String,
    /// The function, or the end of its path; any function if omitted.
    #[serde(default)]
    function: String,
    /// A part of the original code; any code if omitted.
    #[serde(default)]
    code: String,
    /// A part of the replacement; any replacement if omitted.
    #[serde(default)]
    becomes: String,
    pub(crate) why: String,
}

impl Argument {
    fn fits(&self, mutant: &Mutant) -> bool {
        mutant.file == self.file
            && mutant.function.ends_with(&self.function)
            && mutant.code.contains(&self.code)
            && mutant.becomes.contains(&self.becomes)
    }
}

impl Argued {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))
    }

    pub(crate) fn of(&self, mutant: &Mutant) -> Option<&Argument> {
        self.mutant.iter().find(|one| one.fits(mutant))
    }

    /// Arguments that fit no existing mutant: the code has changed.
    pub(crate) fn fitting_none<'a>(&'a self, mutants: &[Mutant]) -> Vec<&'a Argument> {
        let fits_none = |one: &&Argument| !mutants.iter().any(|mutant| one.fits(mutant));
        self.mutant.iter().filter(fits_none).collect()
    }

    /// Arguments that fit none of these mutants: the code has changed, or a judge now finds the
    /// mutants.
    pub(crate) fn needless<'a>(&'a self, open: &[&Mutant]) -> Vec<&'a Argument> {
        let used: Vec<&Argument> = open.iter().filter_map(|mutant| self.of(mutant)).collect();
        self.mutant.iter().filter(|one| !used.contains(one)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn mutant(function: &str, code: &str) -> Mutant {
        let text = str::to_owned;
        Mutant {
            file: text("a.rs"),
            line: 1,
            function: text(function),
            code: text(code),
            becomes: text("is left out"),
        }
    }

    #[test]
    fn an_argument_is_for_what_fits_and_needless_without() {
        let text = "[[mutant]]\nfile = 'a.rs'\nfunction = 'tick'\ncode = 'beat'\nwhy = 'so'";
        let argued: Argued = toml::from_str(text).unwrap();
        let (fits, other) =
            (mutant("Primary::tick", "self.beat = now;"), mutant("Primary::tick", "x"));
        assert_eq!(argued.of(&fits).unwrap().why, "so");
        assert_eq!(argued.of(&other), None);
        assert_eq!(argued.of(&mutant("Primary::frame", "self.beat = now;")), None);
        assert_eq!(argued.needless(&[&fits]), [] as [&Argument; 0]);
        assert_eq!(argued.needless(&[&other]).len(), 1);
        assert_eq!(argued.fitting_none(&[fits, mutant("f", "y")]), [] as [&Argument; 0]);
        assert_eq!(argued.fitting_none(&[other]).len(), 1);
    }
}
