//! Checks the crates of the monitor. Every crate that is linked into it, or that runs while it is
//! built, is either a crate of the tree that the layers check, or comes from crates.io under its
//! own name and is on the list with a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{Package, TargetKind};

use super::super::finding::{Finding, Place};
use super::super::policy::{FarSide, Linked, Policy};
use super::super::rules::{self, Rule};
use super::super::subject::{LINUX, Subject, package_dir};
use super::{Closure, is, tree};

/// Sections of a manifest that replace a crate by another.
const REPLACES: [&str; 2] = ["patch", "replace"];

/// Checks the product's crates.
pub(super) fn look(subject: &Subject) -> Result<Vec<Finding>> {
    let (Some(product), true) = (&subject.policy.gate.product, subject.is_tree()) else {
        return Ok(Vec::new());
    };
    let closure = closure(subject, product)?;
    let mut findings = replaced(subject)?;
    for (name, version) in closure.keys() {
        for package in packages(subject, name, version) {
            findings.extend(judge(subject, package));
        }
    }
    for entry in &subject.policy.far_side {
        findings.extend(features(subject, entry, &closure)?);
    }
    findings.extend(stale(&subject.policy, subject, &closure));
    Ok(findings)
}

/// The crates that a program is built from, for the target that ships.
pub(in super::super) fn closure(subject: &Subject, product: &str) -> Result<Closure> {
    tree(subject, &["--target", LINUX], &[product])
}

/// The packages with a name and a version. There are several if a package has the name and version
/// of another one.
pub(in super::super) fn packages<'s>(
    subject: &'s Subject,
    name: &'s str,
    version: &'s str,
) -> impl Iterator<Item = &'s Package> {
    let same =
        move |package: &&Package| package.name == name && package.version.to_string() == version;
    subject.metadata.packages.iter().filter(same)
}

fn judge(subject: &Subject, package: &Package) -> Vec<Finding> {
    let (name, version) = (package.name.as_str(), &package.version);
    let policy = &subject.policy;
    let found =
        |rule: &'static Rule, what: String| Finding::new(rule, Some(place(subject, package)), what);
    let listed = policy.product.iter().find(|entry| entry.crates.iter().any(|of| of == name));
    let allowed = policy.allow.iter().find(|entry| entry.name == name);
    let own = policy.gate.packages.iter().any(|gated| gated == name)
        || policy.far_side.iter().any(|entry| entry.name == name);
    let mut findings = Vec::new();
    match (&package.source, own) {
        (None, false) => {
            let what = format!("`{name}` is a crate of the tree, and no layer checks it");
            findings.push(found(&rules::GRAPH_OWN, what));
        }
        (Some(_), true) => {
            let what = format!(
                "`{name}` {version} is not of the tree, and has the name of a crate of the tree"
            );
            findings.push(found(&rules::GRAPH_OWN, what));
        }
        (Some(_), false) if listed.is_none() && allowed.is_none() => {
            let what =
                format!("`{name}` {version} is linked into the monitor, and is not on the list");
            findings.push(found(&rules::GRAPH_LINKED, what));
        }
        _ => {}
    }
    let has = |kind: &TargetKind| is(package, kind);
    let names = |list: fn(&Linked) -> &Vec<String>| {
        listed.is_some_and(|entry| list(entry).iter().any(|of| of == name))
    };
    let script = names(|entry| &entry.build_scripts) || allowed.is_some_and(|of| of.build_script);
    if has(&TargetKind::CustomBuild) && !script {
        let what = format!("`{name}` {version} has a build script");
        findings.push(found(&rules::GRAPH_BUILD_SCRIPT, what));
    }
    let writes = names(|entry| &entry.macros) || allowed.is_some_and(|of| of.proc_macro);
    if has(&TargetKind::ProcMacro) && !writes {
        let what = format!("`{name}` {version} is a procedural macro");
        findings.push(found(&rules::GRAPH_PROC_MACRO, what));
    }
    let expected = listed.and_then(|entry| entry.libraries.get(name)).cloned();
    let expected = expected.unwrap_or_else(|| name.replace('-', "_"));
    if let Some(library) = library(package).filter(|library| *library != expected) {
        let what = format!("the library of `{name}` is called `{library}`, expected `{expected}`");
        findings.push(found(&rules::GRAPH_LIBRARY, what));
    }
    findings
}

/// The name of the package's library, if it has one.
fn library(package: &Package) -> Option<&str> {
    let program = |kind: &TargetKind| {
        use TargetKind::{Bench, Bin, CustomBuild, Example, Test};
        matches!(kind, Bin | Example | Test | Bench | CustomBuild)
    };
    let found = package.targets.iter().find(|target| !target.kind.iter().any(program));
    found.map(|target| target.name.as_str())
}

/// Finds manifests of the tree that replace a crate by another.
fn replaced(subject: &Subject) -> Result<Vec<Finding>> {
    let members = &subject.metadata.workspace_members;
    let members = subject.metadata.packages.iter().filter(|package| members.contains(&package.id));
    let mut manifests: BTreeSet<&Path> =
        members.map(|package| package.manifest_path.as_std_path()).collect();
    manifests.insert(&subject.manifest);
    let mut findings = Vec::new();
    for path in manifests {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let table: toml::Table =
            toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
        findings.extend(replaces(&table).map(|key| {
            let line = text.lines().position(|line| line.contains(key)).unwrap_or(0) + 1;
            let place = Place::line(subject.shown(path), line);
            Finding::new(&rules::GRAPH_PATCH, Some(place), format!("the manifest has `[{key}]`"))
        }));
    }
    Ok(findings)
}

fn replaces(manifest: &toml::Table) -> impl Iterator<Item = &'static str> {
    REPLACES.into_iter().filter(|key| manifest.contains_key(*key))
}

/// Checks the cargo features of a crate of the tree. gate.toml lists each feature as on in the
/// product, or as for tests only.
fn features(subject: &Subject, entry: &FarSide, closure: &Closure) -> Result<Vec<Finding>> {
    let package = subject.package(&entry.name)?;
    let on: BTreeSet<&String> = closure
        .iter()
        .filter(|((name, _), _)| *name == entry.name)
        .flat_map(|(_, on)| on)
        .collect();
    let found =
        |what: String| Finding::new(&rules::GRAPH_OWN_FEATURE, Some(place(subject, package)), what);
    let name = &entry.name;
    let unlisted = package.features.keys().filter(|feature| {
        !entry.features.contains(feature) && !entry.test_features.contains(feature)
    });
    let unlisted =
        unlisted.map(|feature| found(format!("`{name}` has the cargo feature `{feature}`")));
    let off = entry.features.iter().filter(|feature| !on.contains(feature));
    let off = off.map(|feature| {
        found(format!("the feature `{feature}` of `{name}` is not on in what ships"))
    });
    let tests = entry.test_features.iter().filter(|feature| on.contains(feature));
    let tests = tests.map(|feature| {
        found(format!("the feature `{feature}` of `{name}`, for tests, is on in what ships"))
    });
    Ok(unlisted.chain(off).chain(tests).collect())
}

/// Finds entries of the list that are not in the product.
fn stale(policy: &Policy, subject: &Subject, closure: &Closure) -> Vec<Finding> {
    let mut in_product: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
    for (name, version) in closure.keys() {
        in_product.entry(name).or_default().extend(packages(subject, name, version));
    }
    let has = |name: &str, kind: &TargetKind| {
        in_product.get(name).is_some_and(|all| all.iter().any(|package| is(package, kind)))
    };
    let mut findings = Vec::new();
    let mut found = |what: String| {
        findings.push(Finding::new(&rules::GRAPH_STALE, Some(Place::line("gate.toml", 1)), what));
    };
    for entry in policy.product.iter().filter(|_| subject.whole) {
        for name in &entry.crates {
            if !in_product.contains_key(name.as_str()) {
                found(format!("`{name}` is not in the product"));
            }
        }
        for name in &entry.build_scripts {
            if !has(name, &TargetKind::CustomBuild) {
                found(format!("`{name}` has no build script"));
            }
        }
        for name in &entry.macros {
            if !has(name, &TargetKind::ProcMacro) {
                found(format!("`{name}` is no procedural macro"));
            }
        }
    }
    findings
}

fn place(subject: &Subject, package: &Package) -> Place {
    // Cargo.lock names every crate of the registry. A manifest names only direct dependencies.
    match package.source {
        None => Place::line(subject.shown(package_dir(package).join("Cargo.toml")), 1),
        Some(_) => Place::line("Cargo.lock", 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_that_puts_another_crate_in_the_place_of_one_is_seen() {
        let seen = |text: &str| -> Vec<_> {
            replaces(&toml::from_str(text).expect("the test's manifest is valid")).collect()
        };
        assert_eq!(seen("[patch.crates-io]\nlog = { path = \"log\" }"), ["patch"]);
        assert_eq!(seen("[patch.\"https://example.org\"]\nlog = { path = \"log\" }"), ["patch"]);
        assert_eq!(seen("[replace]\n\"log:0.4.0\" = { path = \"log\" }"), ["replace"]);
        assert_eq!(seen("[dependencies]\npatch = \"1\""), Vec::<&str>::new());
    }
}
