//! Cargo.lock: the fields that the check needs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::super::finding::{Finding, Place};
use super::super::rules;
use super::super::subject::Subject;

/// The two names of crates.io.
pub(super) const CRATES_IO: [&str; 2] =
    ["registry+https://github.com/rust-lang/crates.io-index", "sparse+https://index.crates.io/"];

/// The packages of Cargo.lock.
#[derive(Debug, Deserialize)]
pub(super) struct Lock {
    #[serde(default)]
    package: Vec<Locked>,
}

#[derive(Debug, Deserialize)]
struct Locked {
    name: String,
    version: String,
    /// None for a crate that comes from a path.
    source: Option<String>,
    checksum: Option<String>,
}

impl Lock {
    pub(super) fn read(subject: &Subject) -> Result<Self> {
        let workspace: &Path = subject.metadata.workspace_root.as_std_path();
        let path = workspace.join("Cargo.lock");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))
    }

    pub(super) fn has_checksum(&self, name: &str, version: &str) -> bool {
        self.package.iter().any(|locked| {
            locked.name == name && locked.version == version && locked.checksum.is_some()
        })
    }

    /// Finds packages that do not come from crates.io with a checksum. Crates that come from a path
    /// are left out.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let place = || Some(Place::line("Cargo.lock", 1));
        let foreign = |locked: &Locked| {
            let Locked { name, version, source, checksum } = locked;
            let source = source.as_deref()?;
            if !CRATES_IO.contains(&source) {
                let what = format!("`{name}` {version} comes from {source}");
                return Some(Finding::new(&rules::GRAPH_SOURCE, place(), what));
            }
            let what = format!("`{name}` {version} has no checksum in Cargo.lock");
            checksum.is_none().then(|| Finding::new(&rules::GRAPH_CHECKSUM, place(), what))
        };
        self.package.iter().filter_map(foreign).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_come_from_the_registry_with_a_checksum_is_named() {
        let lock: Lock = toml::from_str(
            r#"
            [[package]]
            name = "own"
            version = "0.1.0"
            [[package]]
            name = "good"
            version = "1.0.0"
            source = "registry+https://github.com/rust-lang/crates.io-index"
            checksum = "00"
            [[package]]
            name = "unsummed"
            version = "1.0.0"
            source = "registry+https://github.com/rust-lang/crates.io-index"
            [[package]]
            name = "of-git"
            version = "1.0.0"
            source = "git+https://example.org/of-git#0123"
            [[package]]
            name = "of-another-registry"
            version = "1.0.0"
            source = "registry+https://example.org/index"
            checksum = "00"
            "#,
        )
        .expect("the test's lock is valid");
        let found: Vec<_> =
            lock.findings().into_iter().map(|found| (found.rule, found.what)).collect();
        let expected = [
            ("graph/checksum", "`unsummed` 1.0.0 has no checksum in Cargo.lock"),
            ("graph/source", "`of-git` 1.0.0 comes from git+https://example.org/of-git#0123"),
            (
                "graph/source",
                "`of-another-registry` 1.0.0 comes from registry+https://example.org/index",
            ),
        ];
        assert_eq!(found, expected.map(|(rule, what)| (rule, what.to_owned())));
    }
}
