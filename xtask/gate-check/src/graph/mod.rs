//! The layer `graph`: checks all dependencies of the checked crates, for every target, against the
//! allow-list. It also checks the crates that the product is built from, and the configuration of
//! cargo and rustup.

mod lock;
pub(super) mod product;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Edition, Package, TargetKind};

use self::lock::{CRATES_IO, Lock};
use super::configuration;
use super::finding::{Finding, Outcome, Place};
use super::policy::{Allowed, Source};
use super::rules;
use super::subject::{Subject, package_dir};

/// Runs the layer.
pub(crate) fn look(subject: &Subject) -> Result<Outcome> {
    let closure = closure(subject)?;
    let lock = Lock::read(subject)?;
    let mut findings = Vec::new();
    for ((name, version), features) in &closure {
        let package = package(subject, name, version)?;
        let place = place(subject, name)?;
        let listed = subject.policy.allow.iter().find(|entry| entry.name == *name);
        let checked = subject.packages.contains(name);
        let (Some(listed), false) = (listed, checked && listed.is_none()) else {
            if checked {
                findings.extend(build_script(package, &place, false));
            } else {
                let what =
                    format!("`{name}` {version} is not on the list ({})", way(subject, name));
                findings.push(Finding::new(&rules::GRAPH_UNLISTED, Some(place), what));
            }
            continue;
        };
        findings.extend(source(subject, package, listed, &place, &lock));
        findings.extend(build_script(package, &place, listed.build_script));
        findings.extend(self::features(name, features, listed, &place));
        if is(package, &TargetKind::ProcMacro) && !listed.proc_macro {
            let what = format!("`{name}` {version} is a procedural macro");
            findings.push(Finding::new(&rules::GRAPH_PROC_MACRO, Some(place), what));
        }
    }
    for package in subject.checked()? {
        findings.extend(manifest(subject, package));
    }
    if subject.whole {
        findings.extend(stale(subject, &closure)?);
    }
    findings.extend(configuration::look(subject)?);
    if subject.is_tree() {
        findings.extend(lock.findings());
    }
    findings.extend(product::look(subject)?);
    Ok(Outcome::Looked(findings))
}

/// Name and version of every crate that packages are built from, with the features that are on when
/// the packages are built by themselves.
pub(super) type Closure = BTreeMap<(String, String), BTreeSet<String>>;

fn closure(subject: &Subject) -> Result<Closure> {
    let packages: Vec<&str> = subject.packages.iter().map(String::as_str).collect();
    tree(subject, &["--target", "all", "--all-features"], &packages)
}

fn tree(subject: &Subject, more: &[&str], packages: &[&str]) -> Result<Closure> {
    let mut cargo = subject.cargo("tree");
    cargo.args(["--edges", "normal,build", "--prefix", "none", "--no-dedupe"]);
    cargo.args(["--format", "{p}|{f}"]).args(more);
    for name in packages {
        cargo.args(["--package", name]);
    }
    let output = cargo.output().context("cannot run cargo tree")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo tree failed: {}", said.trim());
    let mut closure = Closure::new();
    for line in String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.is_empty()) {
        let (package, features) =
            line.split_once('|').context("cargo tree wrote another format")?;
        let mut words = package.split(' ');
        let (name, version) = (words.next(), words.next());
        let (Some(name), Some(version)) = (name, version.and_then(|word| word.strip_prefix('v')))
        else {
            anyhow::bail!("cargo tree wrote `{line}`, expected a name and a version");
        };
        let entry = closure.entry((name.to_owned(), version.to_owned())).or_default();
        entry.extend(features.split(',').filter(|name| !name.is_empty()).map(str::to_owned));
    }
    Ok(closure)
}

fn package<'a>(subject: &'a Subject, name: &str, version: &str) -> Result<&'a Package> {
    let same = |package: &&Package| package.name == name && package.version.to_string() == version;
    let found = subject.metadata.packages.iter().find(same);
    found.with_context(|| format!("cargo metadata does not know {name} {version}"))
}

/// The line of a checked package's manifest that brings the crate in, directly or through another
/// crate.
fn place(subject: &Subject, name: &str) -> Result<Place> {
    let first = way_to(subject, name).into_iter().nth(1).unwrap_or_else(|| name.to_owned());
    for package in subject.checked()? {
        let text = fs::read_to_string(&package.manifest_path)?;
        let named = |line: &str| {
            let key = line.trim_start().split(['=', '.', ' ']).next().unwrap_or_default();
            key == first || line.contains(&format!("dependencies.{first}]"))
        };
        if let Some(index) = text.lines().position(named) {
            return Ok(Place::line(subject.shown(&package.manifest_path), index + 1));
        }
    }
    Ok(Place::line(subject.shown(&subject.manifest), 1))
}

fn way(subject: &Subject, name: &str) -> String {
    way_to(subject, name).join(" → ")
}

/// A shortest chain of dependencies from a checked package to a crate, by names.
fn way_to(subject: &Subject, name: &str) -> Vec<String> {
    let Some(resolve) = &subject.metadata.resolve else { return Vec::new() };
    let names: BTreeMap<_, _> = subject
        .metadata
        .packages
        .iter()
        .map(|package| (&package.id, package.name.to_string()))
        .collect();
    let start = subject.packages.iter().filter_map(|name| subject.package(name).ok());
    let mut ways: std::collections::VecDeque<Vec<_>> =
        start.map(|package| vec![&package.id]).collect();
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        let Some(&last) = way.last() else { continue };
        if names.get(last).is_some_and(|found| found == name) {
            return way.iter().filter_map(|id| names.get(*id).cloned()).collect();
        }
        if !seen.insert(last) {
            continue;
        }
        let Some(node) = resolve.nodes.iter().find(|node| node.id == *last) else { continue };
        use cargo_metadata::DependencyKind::{Build, Normal};
        for next in &node.deps {
            if next.dep_kinds.iter().any(|kind| matches!(kind.kind, Normal | Build)) {
                ways.push_back(way.iter().copied().chain([&next.pkg]).collect());
            }
        }
    }
    Vec::new()
}

fn is(package: &Package, kind: &TargetKind) -> bool {
    package.targets.iter().any(|target| target.kind.contains(kind))
}

fn build_script(package: &Package, place: &Place, allowed: bool) -> Option<Finding> {
    let has = is(package, &TargetKind::CustomBuild) && !allowed;
    let what = format!("`{}` {} has a build script", package.name, package.version);
    has.then(|| Finding::new(&rules::GRAPH_BUILD_SCRIPT, Some(place.clone()), what))
}

fn source(
    subject: &Subject,
    package: &Package,
    listed: &Allowed,
    place: &Place,
    lock: &Lock,
) -> Option<Finding> {
    let (name, version) = (&package.name, &package.version);
    let at = Some(place.clone());
    match (&package.source, listed.source) {
        (None, Source::Path) if subject.is_scanned(package) => None,
        (None, _) => {
            let what = format!(
                "`{name}` {version} comes from the path {}",
                package_dir(package).display()
            );
            Some(Finding::new(&rules::GRAPH_SOURCE, at, what))
        }
        (Some(source), _) if !CRATES_IO.contains(&source.repr.as_str()) => {
            let what = format!("`{name}` {version} comes from {source}");
            Some(Finding::new(&rules::GRAPH_SOURCE, at, what))
        }
        (Some(_), _) if lock.has_checksum(name, &version.to_string()) => None,
        (Some(_), _) => {
            let what = format!("`{name}` {version} has no checksum in Cargo.lock");
            Some(Finding::new(&rules::GRAPH_CHECKSUM, at, what))
        }
    }
}

fn features(name: &str, on: &BTreeSet<String>, listed: &Allowed, place: &Place) -> Vec<Finding> {
    let extra = on
        .iter()
        .filter(|feature| listed.source == Source::Registry && !listed.features.contains(feature));
    extra
        .map(|feature| {
            let what = format!("the feature `{feature}` of `{name}` is on, and not on the list");
            Finding::new(&rules::GRAPH_FEATURE, Some(place.clone()), what)
        })
        .collect()
}

fn stale(subject: &Subject, closure: &Closure) -> Result<Vec<Finding>> {
    let path = subject.root.join("gate.toml");
    let text = fs::read_to_string(&path)?;
    let mut findings = Vec::new();
    let mut stale = |name: &str, what: String| {
        let entry = format!("name = \"{name}\"");
        let line = text.lines().position(|line| line == entry).map_or(1, |index| index + 1);
        let place = Place::line(subject.shown(&path), line);
        findings.push(Finding::new(&rules::GRAPH_STALE, Some(place), what));
    };
    for entry in &subject.policy.allow {
        let on: Vec<_> = closure.iter().filter(|((name, _), _)| *name == entry.name).collect();
        if on.is_empty() {
            stale(&entry.name, format!("nothing depends on `{}`", entry.name));
        }
        for feature in &entry.features {
            if !on.is_empty() && !on.iter().any(|(_, features)| features.contains(feature)) {
                stale(
                    &entry.name,
                    format!("the feature `{feature}` of `{}` is not on", entry.name),
                );
            }
        }
    }
    Ok(findings)
}

/// Checks the manifest of a checked package. There must be only one way to build the package, or
/// the checked program is not the one that ships.
fn manifest(subject: &Subject, package: &Package) -> Vec<Finding> {
    let place = Place::line(subject.shown(&package.manifest_path), 1);
    let name = &package.name;
    let features = package.features.keys().map(|feature| {
        let what = format!("`{name}` has the cargo feature `{feature}`");
        Finding::new(&rules::GRAPH_OWN_FEATURE, Some(place.clone()), what)
    });
    let renamed = package.dependencies.iter().filter_map(|dependency| {
        let what = format!(
            "`{}` is called `{}` in `{name}`",
            dependency.name,
            dependency.rename.as_ref()?
        );
        Some(Finding::new(&rules::GRAPH_RENAMED, Some(place.clone()), what))
    });
    let edition = (package.edition != Edition::E2024).then(|| {
        let what = format!("`{name}` is of edition {}", package.edition);
        Finding::new(&rules::GRAPH_EDITION, Some(place.clone()), what)
    });
    features.chain(renamed).chain(edition).collect()
}
