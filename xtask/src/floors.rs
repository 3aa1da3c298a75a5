//! Tests that the folders are the architecture: which crate of the product lies where, and which
//! other crates it may depend on. Every dependency that a crate declares must be used.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod circles;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

use crate::build::repository;

/// A crate of the product, from the lowest floor up: its folder, its package, and the crates of
/// this tree that it depends on.
const FLOORS: &[(&str, &str, &[&str])] = &[
    ("io-gate", "io-gate", &[]),
    ("io-gate/memory", "io-gate-memory", &[]),
    ("devices", "kemari-devices", &["io-gate"]),
    ("ft-core", "ft-core", &["io-gate"]),
    ("io-gate/host", "io-gate-host", &["io-gate", "io-gate-memory"]),
    ("vmm/confine", "kemari-confine", &[]),
    ("vmm/support", "kemari-support", &["io-gate-host", "kemari-confine"]),
    ("vmm/hypervisor", "kemari-hypervisor", &["io-gate-memory"]),
    (
        "vmm/machine",
        "kemari-machine",
        &[
            "io-gate",
            "io-gate-host",
            "kemari-confine",
            "kemari-devices",
            "kemari-hypervisor",
            "kemari-support",
        ],
    ),
    ("vmm/audit", "kemari-audit", &["io-gate", "io-gate-host", "kemari-confine", "kemari-support"]),
    (
        "vmm/arbiter",
        "kemari-arbiter",
        &["ft-core", "io-gate", "io-gate-host", "kemari-confine", "kemari-support"],
    ),
    (
        "vmm/replication",
        "kemari-replication",
        &[
            "ft-core",
            "io-gate",
            "io-gate-host",
            "kemari-arbiter",
            "kemari-audit",
            "kemari-confine",
            "kemari-hypervisor",
            "kemari-machine",
            "kemari-support",
        ],
    ),
    (
        "vmm",
        "kemari-vmm",
        &[
            "ft-core",
            "io-gate",
            "io-gate-host",
            "kemari-arbiter",
            "kemari-audit",
            "kemari-confine",
            "kemari-devices",
            "kemari-hypervisor",
            "kemari-machine",
            "kemari-replication",
            "kemari-support",
        ],
    ),
];
/// The tools, from the lowest up, in the same form. They know no crate of the product: they build
/// it and run it as processes.
const TOOLS: &[(&str, &str, &[&str])] = &[
    ("xtask/common", "xtask-common", &[]),
    ("tests/guests/workload", "kemari-workload", &[]),
    ("tests/inject", "kemari-inject", &[]),
    ("tests/not-tested", "kemari-not-tested", &[]),
    ("tests/verify/flags", "kemari-flags", &[]),
    ("xtask/gate-check", "kemari-gate-check", &["xtask-common"]),
    (
        "tests/testbed",
        "kemari-testbed",
        &["kemari-inject", "kemari-not-tested", "kemari-workload", "xtask-common"],
    ),
    ("xtask/bench", "xtask-bench", &["kemari-testbed", "kemari-workload", "xtask-common"]),
    (
        "xtask",
        "xtask",
        &["kemari-flags", "kemari-gate-check", "kemari-testbed", "xtask-bench", "xtask-common"],
    ),
];
/// The circles of modules that stay: the crate, the modules (with those below them), and the
/// reason.
const CIRCLES: &[(&str, &[&str], &str)] = &[
    (
        "kemari-drivers",
        &[
            "blocks",
            "cable",
            "faults",
            "hosts",
            "judge",
            "kvm",
            "run",
            "scheduler",
            "sides",
            "watch",
            "world",
        ],
        "a simulated world: the scheduler asks what fails next, and those who decide it wait in the scheduler",
    ),
    (
        "kemari-gate-check",
        &["finding", "policy", "rules", "source", "subject"],
        "the list of rules has the lints of the source, whose findings and exceptions name rules of the list",
    ),
    (
        "kemari-gate-check",
        &["source::lints", "source::scan"],
        "the walk over the source calls the lints, which report to it and let it go on into what they were given",
    ),
];
/// What is linked into the product.
const PRODUCT: &str = "kemari-vmm";

fn metadata() -> Metadata {
    let mut command = MetadataCommand::new();
    command.manifest_path(repository().join("Cargo.toml")).no_deps().exec().unwrap()
}

fn package<'m>(metadata: &'m Metadata, name: &str) -> &'m Package {
    let found = metadata.packages.iter().find(|package| package.name == name);
    found.unwrap_or_else(|| panic!("expected a package `{name}`, found none"))
}

fn folder(package: &Package) -> PathBuf {
    package.manifest_path.parent().unwrap().as_std_path().to_owned()
}

/// The crates of this tree that a package depends on, without dev-dependencies.
fn knows(package: &Package) -> BTreeSet<&str> {
    let own = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
    let product = own.filter(|dependency| dependency.kind == DependencyKind::Normal);
    product.map(|dependency| dependency.name.as_str()).collect()
}

#[test]
fn each_crate_knows_those_below_it_and_no_others() {
    check(FLOORS);
}

#[test]
fn the_tools_know_no_crate_of_the_product() {
    check(TOOLS);
}

fn check(table: &[(&str, &str, &[&str])]) {
    let metadata = metadata();
    let mut below = BTreeSet::new();
    for (place, name, expected) in table {
        let package = package(&metadata, name);
        assert_eq!(folder(package), repository().join(place), "the folder of `{name}`");
        let (found, expected) = (knows(package), expected.iter().copied().collect());
        assert_eq!(found, expected, "`{name}`: what it knows, and what the table says");
        let above: Vec<_> = found.difference(&below).collect();
        assert!(above.is_empty(), "`{name}` knows {above:?}, which the table has above it");
        below.insert(*name);
    }
}

#[test]
fn the_product_is_made_of_the_crates_of_the_table() {
    let metadata = metadata();
    let (mut seen, mut left) = (BTreeSet::new(), vec![PRODUCT]);
    while let Some(name) = left.pop() {
        if seen.insert(name) {
            left.extend(knows(package(&metadata, name)));
        }
    }
    let table: BTreeSet<&str> = FLOORS.iter().map(|(_, name, _)| *name).collect();
    assert_eq!(seen, table);
}

fn is_at_or_below(module: &str, name: &str) -> bool {
    module.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The first files of all crates, by the names of their packages. The micro guest is in no
/// workspace.
fn roots(metadata: &Metadata) -> Vec<(&str, PathBuf)> {
    let mut roots = vec![("micro-guest", repository().join("tests/guests/micro/src/main.rs"))];
    for package in &metadata.packages {
        let targets = package.targets.iter().filter(|target| target.is_lib() || target.is_bin());
        let paths = targets.map(|target| target.src_path.as_std_path().to_owned());
        roots.extend(paths.map(|path| (package.name.as_str(), path)));
    }
    roots
}

#[test]
fn no_circle_among_the_modules_of_a_crate() {
    let metadata = metadata();
    let roots = roots(&metadata);
    let mut found = Vec::new();
    for (name, root) in &roots {
        found.extend(circles::circles(root).into_iter().map(|circle| (*name, circle)));
    }
    let stays = |(package, circle): &(&str, BTreeSet<String>), known: &(&str, &[&str], &str)| {
        let is_known = |module: &String| known.1.iter().any(|name| is_at_or_below(module, name));
        *package == known.0 && circle.iter().all(is_known)
    };
    let new: Vec<_> =
        found.iter().filter(|circle| !CIRCLES.iter().any(|known| stays(circle, known))).collect();
    assert!(
        new.is_empty(),
        "circles of modules: {new:?}: move what both sides need to a file of its own"
    );
    let gone: Vec<_> =
        CIRCLES.iter().filter(|known| !found.iter().any(|circle| stays(circle, known))).collect();
    assert!(gone.is_empty(), "no longer circles, take them out of CIRCLES: {gone:?}");
}

/// A reader of the product learns its folders one at a time.
#[test]
fn no_circle_among_the_folders_of_the_product() {
    let metadata = metadata();
    let is_product = |name: &str| FLOORS.iter().any(|(_, product, _)| *product == name);
    let mut found = Vec::new();
    for (name, root) in roots(&metadata).iter().filter(|(name, _)| is_product(name)) {
        found.extend(circles::folder_circles(root).into_iter().map(|circle| (*name, circle)));
    }
    assert!(
        found.is_empty(),
        "circles of folders: {found:?}: move what both sides need to a folder of its own"
    );
}

/// The text of all Rust files below a folder, without nested crates.
fn text(folder: &Path, out: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_owned();
        if path.is_dir() && name != "target" && !path.join("Cargo.toml").exists() {
            text(&path, out);
        } else if path.extension().is_some_and(|end| end == "rs") {
            out.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn no_dependency_is_unused() {
    let metadata = metadata();
    let mut unused = Vec::new();
    for package in &metadata.packages {
        let mut code = String::new();
        text(&folder(package), &mut code);
        let words: BTreeSet<&str> =
            code.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
        for dependency in &package.dependencies {
            // No code names a dependency that only a feature needs.
            let by_feature = dependency.optional
                && package
                    .features
                    .values()
                    .flatten()
                    .any(|feature| feature.starts_with(&format!("{}/", dependency.name)));
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name).replace('-', "_");
            if !by_feature && !words.contains(name.as_str()) {
                unused.push(format!("{}: {}", package.name, dependency.name));
            }
        }
    }
    assert!(unused.is_empty(), "named in Cargo.toml and in no code: {}", unused.join(", "));
}
