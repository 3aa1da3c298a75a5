//! `gate.toml`: what may be behind the gate, and which places may hold descriptors, each with a reason.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::given_file;

/// What is allowed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Policy {
    /// What is checked.
    #[serde(default)]
    pub(crate) gate: Subjects,
    /// Crates that may be in the closure.
    #[serde(default)]
    pub(crate) allow: Vec<Allowed>,
    /// Rules of the source scan that a file may break.
    #[serde(default)]
    pub(crate) exception: Vec<Exception>,
    /// Modules that may open or hold descriptors.
    #[serde(default)]
    pub(crate) descriptors: Vec<Place>,
}

/// What is checked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Subjects {
    /// Packages that every layer looks at.
    pub(crate) packages: Vec<String>,
    /// Packages that are compiled by `types` as well: they hold the proofs, and spend them.
    #[serde(default)]
    pub(crate) compiled: Vec<String>,
    /// Directories in which nothing may have to do with descriptors but the places listed.
    #[serde(default)]
    pub(crate) descriptor_sources: Vec<PathBuf>,
}

/// A crate that may be in the closure.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Allowed {
    /// Its name.
    pub(crate) name: String,
    /// Why it may.
    pub(crate) why: String,
    /// `registry`, or `path` for a crate of the tree.
    #[serde(default)]
    pub(crate) source: Source,
    /// Features that may be on.
    #[serde(default)]
    pub(crate) features: Vec<String>,
    /// Whether it has a build script, which was looked at.
    #[serde(default)]
    pub(crate) build_script: bool,
    /// Whether it is a procedural macro.
    #[serde(default)]
    pub(crate) proc_macro: bool,
}

/// Where a crate comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// crates.io, with a checksum.
    #[default]
    Registry,
    /// The tree itself.
    Path,
}

/// A rule of the source scan that a file may break.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Exception {
    /// The rule.
    pub(crate) rule: String,
    /// The file, relative to the workspace; for `expanded` its module's file.
    pub(crate) file: PathBuf,
    /// What the finding has to contain.
    #[serde(default)]
    pub(crate) about: String,
    /// Why it may.
    pub(crate) why: String,
}

/// A module that may open or hold descriptors.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Place {
    /// The file, or a directory of files.
    pub(crate) path: PathBuf,
    /// Whether it opens any.
    #[serde(default)]
    pub(crate) opens: bool,
    /// Why it may.
    pub(crate) why: String,
}

impl Policy {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = given_file::text(path).context("the allow-list")?;
        let policy: Self = toml::from_str(&text)
            .with_context(|| format!("{} is not a valid allow-list", path.display()))?;
        for exception in &policy.exception {
            let known = super::rules::ALL.iter().any(|rule| rule.id == exception.rule);
            ensure!(known, "{}: there is no rule `{}`", path.display(), exception.rule);
        }
        let allowed = policy.allow.iter().map(|entry| (entry.name.clone(), &entry.why));
        let excepted =
            policy.exception.iter().map(|entry| (entry.file.display().to_string(), &entry.why));
        let places =
            policy.descriptors.iter().map(|entry| (entry.path.display().to_string(), &entry.why));
        for (name, why) in allowed.chain(excepted).chain(places) {
            ensure!(!why.trim().is_empty(), "{}: `{name}` has no reason", path.display());
        }
        Ok(policy)
    }

    /// Adds what another file allows.
    pub(crate) fn extend(&mut self, other: Self) {
        self.allow.extend(other.allow);
        self.exception.extend(other.exception);
        self.descriptors.extend(other.descriptors);
    }
}
