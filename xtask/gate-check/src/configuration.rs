//! Finds configuration of cargo and rustup that changes what is compiled: with it, the program that
//! ships could differ from the checked one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::finding::{Finding, Place};
use super::rules::{self, Rule};
use super::subject::{Subject, package_dir};

/// Settings of cargo that do not change what is compiled.
const HARMLESS: [&str; 7] =
    ["alias", "net", "http", "term", "registries", "registry", "future-incompat-report"];
const CARGO: [&str; 2] = [".cargo/config.toml", ".cargo/config"];
const RUSTUP: [&str; 2] = ["rust-toolchain.toml", "rust-toolchain"];

/// Checks the tree, its parent folders and the folders of its packages: cargo and rustup read their
/// configuration from all of these.
pub(super) fn look(subject: &Subject) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let home = std::env::var_os("CARGO_HOME").or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".cargo").into_os_string())
    });
    for folder in folders(subject) {
        for path in CARGO.map(|name| folder.join(name)) {
            // The user's own configuration is not part of the tree. It may name a mirror of
            // crates.io, for instance.
            if path.parent() != home.as_deref().map(Path::new) {
                findings.extend(keys(subject, &path, &rules::GRAPH_CONFIG, cargo_changes)?);
            }
        }
        for path in RUSTUP.map(|name| folder.join(name)) {
            findings.extend(keys(subject, &path, &rules::GRAPH_TOOLCHAIN, rustup_changes)?);
        }
    }
    Ok(findings)
}

fn folders(subject: &Subject) -> BTreeSet<&Path> {
    let members = &subject.metadata.workspace_members;
    let members = subject.metadata.packages.iter().filter(|package| members.contains(&package.id));
    members.map(package_dir).chain([&*subject.root]).flat_map(Path::ancestors).collect()
}

/// The keys of cargo's configuration that change what is compiled.
fn cargo_changes(table: &toml::Table) -> Vec<String> {
    table.keys().filter(|key| !HARMLESS.contains(&key.as_str())).cloned().collect()
}

/// The settings that choose a toolchain by path: such a compiler may compile any code into any
/// program.
fn rustup_changes(table: &toml::Table) -> Vec<String> {
    let toolchain = table.get("toolchain").and_then(toml::Value::as_table);
    let path = toolchain.is_some_and(|toolchain| toolchain.contains_key("path"));
    if path { vec!["path".to_owned()] } else { Vec::new() }
}

fn keys(
    subject: &Subject,
    path: &Path,
    rule: &'static Rule,
    changes: fn(&toml::Table) -> Vec<String>,
) -> Result<Vec<Finding>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // A toolchain file may consist of a name only.
    let Ok(table) = toml::from_str::<toml::Table>(&text) else { return Ok(Vec::new()) };
    let finding = |key: String| {
        let line = text.lines().position(|line| line.contains(key.as_str())).unwrap_or(0) + 1;
        Finding::new(rule, Some(Place::line(subject.shown(path), line)), format!("`{key}` is set"))
    };
    Ok(changes(&table).into_iter().map(finding).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> toml::Table {
        toml::from_str(text).expect("the test's text is TOML")
    }

    #[test]
    fn what_changes_what_is_compiled_is_named() {
        let cargo =
            table("[source.x]\ndirectory = \"y\"\n[net]\noffline = true\n[patch.crates-io]\n");
        assert_eq!(cargo_changes(&cargo), ["patch", "source"]);
        assert_eq!(rustup_changes(&table("[toolchain]\npath = \"/opt/rust\"")), ["path"]);
        assert!(rustup_changes(&table("[toolchain]\nchannel = \"1.95\"")).is_empty());
    }
}
