//! Tests that each `cargo test -p PACKAGE --test NAME` in this program and in the documents names a
//! test that there is. Cargo notices a missing one only when the command runs.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{Metadata, MetadataCommand};

use crate::build::repository;

/// Made by `cargo xtask new-device`: they are in no workspace that a test sees.
const MADE_LATER: [&str; 2] = ["pager", "rain_gauge"];

/// A package and one of its test programs.
type Named = (String, String);

/// The test programs that a line names. A line of Rust may have the words as strings of an array.
fn named(line: &str) -> Vec<Named> {
    let words: Vec<_> = line.split(|c: char| c.is_whitespace() || "\"',`[];".contains(c)).collect();
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let behind = |flags: &'static [&str]| {
        let pairs = words.windows(2).filter(move |pair| flags.contains(&pair[0]));
        pairs.map(|pair| pair[1].to_owned())
    };
    let Some(package) = behind(&["-p", "--package"]).next() else { return Vec::new() };
    let is_name =
        |name: &String| name.chars().all(|c| c.is_ascii_lowercase() || "_-0123456789".contains(c));
    let tests = behind(&["--test"]).filter(is_name);
    tests
        .filter(|name| !MADE_LATER.contains(&name.as_str()))
        .map(|name| (package.clone(), name))
        .collect()
}

fn exists(metadata: &Metadata, (package, test): &Named) -> bool {
    let packages = metadata.packages.iter().filter(|found| found.name == package.as_str());
    let mut targets = packages.flat_map(|package| &package.targets);
    targets.any(|target| target.is_test() && target.name == *test)
}

/// The Rust files and documents below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, found);
        } else if name.ends_with(".rs") || name.ends_with(".md") {
            found.push(path);
        }
    }
}

#[test]
fn each_test_that_a_command_names_exists() {
    let metadata = MetadataCommand::new()
        .manifest_path(repository().join("Cargo.toml"))
        .no_deps()
        .exec()
        .unwrap();
    let mut found = Vec::new();
    files(repository(), &mut found);
    let mut missing = Vec::new();
    let mut checked = 0;
    for path in found.iter().filter(|path| !path.ends_with("named_tests.rs")) {
        for line in fs::read_to_string(path).unwrap().lines() {
            let named = named(line);
            checked += named.len();
            let gone = named.iter().filter(|named| !exists(&metadata, named));
            missing.extend(gone.map(|(package, test)| {
                format!("{}: package {package} has no test `{test}`", path.display())
            }));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(
        checked >= 3,
        "expected commands that name tests, found {checked}: how are they written?"
    );
}

#[test]
fn names_are_found_in_commands_and_in_arrays() {
    let of = |package: &str, test: &str| vec![(package.to_owned(), test.to_owned())];
    assert_eq!(named("cargo test --release -p a-b --test c_d -- --ignored"), of("a-b", "c_d"));
    assert_eq!(named(r#"let x = ["test", "--package", "a", "--test", "b"];"#), of("a", "b"));
    assert_eq!(named("cargo test -p kemari-devices --test pager"), []);
    assert_eq!(named("cargo test -p a --test {name}"), []);
    assert_eq!(named("cargo test --test b"), []);
}
