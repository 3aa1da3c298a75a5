//! A copy of the workspace in which every mutant of the protocol core is compiled.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::sites::{self, Mutant};

/// The copied crates: the core, its dependencies, and the judges.
const MEMBERS: [&str; 4] = ["io-gate", "ft-core", "tests/verify/flags", "tests/verify/sim"];
const SWITCH: &str = include_str!("switch.rs.txt");

/// The copy and its mutants. A judge's program is built when it is first needed.
pub(crate) struct Copied {
    pub(crate) mutants: Vec<Mutant>,
    tree: PathBuf,
    target: PathBuf,
    /// Hash of all sources of the unit tests.
    pub(crate) tests_hash: u64,
    /// Hash of all sources of the simulation.
    pub(crate) sim_hash: u64,
}

/// Files by their path in the copy.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Creates or updates the copy in `scratch`.
pub(crate) fn copy(project: &Path, scratch: &Path) -> Result<Copied> {
    let mut files = Files::new();
    for member in MEMBERS {
        read(project, &project.join(member), &mut files)?;
    }
    for file in ["Cargo.lock", "rust-toolchain.toml"] {
        files.insert(file.into(), fs::read(project.join(file)).with_context(|| file.to_owned())?);
    }
    files.insert("Cargo.toml".into(), manifest(project)?.into_bytes());
    let mutants = mutate(&mut files)?;
    let (tree, target) = (scratch.join("tree"), scratch.join("target"));
    write(&tree, &files)?;
    let tests_hash = hash(&files, |path| !path.starts_with("tests"));
    let sim_hash = hash(&files, |path| !is_test(path));
    Ok(Copied { mutants, tree, target, tests_hash, sim_hash })
}

impl Copied {
    /// Builds the core's unit tests.
    pub(crate) fn unit_tests(&self) -> Result<PathBuf> {
        let test = ["test", "--release", "--no-run", "--lib", "--package", "ft-core"];
        built(&self.tree, &self.target, &test, "ft_core")
    }

    /// Builds the simulation.
    pub(crate) fn simulation(&self) -> Result<PathBuf> {
        let release = ["build", "--release", "--package", "kemari-sim"];
        built(&self.tree, &self.target, &release, "kemari-sim")
    }
}

/// The manifest of the workspace with only the copied members.
fn manifest(project: &Path) -> Result<String> {
    let text = fs::read_to_string(project.join("Cargo.toml"))?;
    let mut manifest: toml::Table = toml::from_str(&text)?;
    let workspace = manifest.get_mut("workspace").and_then(toml::Value::as_table_mut);
    let workspace = workspace.context("Cargo.toml: expected [workspace]")?;
    workspace.insert("members".to_owned(), MEMBERS.map(str::to_owned).to_vec().into());
    workspace.remove("exclude");
    workspace.remove("lints");
    workspace.insert("lints".to_owned(), toml::Table::new().into());
    let release = manifest.get_mut("profile").and_then(|all| all.get_mut("release"));
    let release = release.and_then(toml::Value::as_table_mut);
    // Debug information is not used here, and the build is faster without it.
    release
        .context("Cargo.toml: expected [profile.release]")?
        .insert("debug".to_owned(), false.into());
    Ok(toml::to_string(&manifest)?)
}

/// Reads all files below `folder`.
fn read(root: &Path, folder: &Path, files: &mut Files) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        let path = entry?.path();
        if path.is_dir() {
            read(root, &path, files)?;
        } else {
            files.insert(path.strip_prefix(root)?.to_owned(), fs::read(&path)?);
        }
    }
    Ok(())
}

/// Makes the tree contain exactly these files. Unchanged files are not touched, so that cargo does
/// not build them again.
fn write(tree: &Path, files: &Files) -> Result<()> {
    fs::create_dir_all(tree)?;
    let mut old = Files::new();
    read(tree, tree, &mut old)?;
    for path in old.keys().filter(|path| !files.contains_key(*path)) {
        fs::remove_file(tree.join(path))?;
    }
    for (path, bytes) in files.iter().filter(|(path, bytes)| old.get(*path) != Some(bytes)) {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap_or(tree))?;
        fs::write(path, bytes)?;
    }
    Ok(())
}

/// Whether only the core's unit tests use this file.
fn is_test(path: &Path) -> bool {
    let Ok(name) = path.strip_prefix("ft-core/src") else { return false };
    let in_tests = name.components().any(|part| part.as_os_str() == "tests");
    in_tests || name.ends_with("tests.rs") || name.ends_with("testing.rs")
}

/// FNV-1a over paths and contents.
fn hash(files: &Files, wanted: impl Fn(&Path) -> bool) -> u64 {
    let wanted = files.iter().filter(|(path, _)| wanted(path));
    let bytes = wanted.flat_map(|(path, bytes)| {
        path.as_os_str().as_encoded_bytes().iter().chain(bytes).chain(&[0])
    });
    sites::fnv(bytes.copied())
}

/// Compiles the mutants into the sources of the core.
fn mutate(files: &mut Files) -> Result<Vec<Mutant>> {
    let (mut mutants, sources) = (Vec::new(), Path::new("ft-core/src"));
    for (path, bytes) in files.iter_mut() {
        let Ok(name) = path.strip_prefix(sources) else { continue };
        let left_alone = ["bugs.rs", "lib.rs"].iter().any(|file| name.ends_with(file));
        if left_alone || is_test(path) {
            continue;
        }
        let name = name.display().to_string();
        let source = std::str::from_utf8(bytes).with_context(|| name.clone())?;
        let text = sites::mutate(&name, source, &mut mutants).with_context(|| name.clone())?;
        *bytes = text.into_bytes();
    }
    files.insert(sources.join("mutants.rs"), SWITCH.into());
    let root = files.get_mut(&sources.join("lib.rs")).context("expected ft-core/src/lib.rs")?;
    let text = std::str::from_utf8(root)?;
    let (before, after) = ("\nextern crate alloc;\n", "\nextern crate alloc;\nmod mutants;\n");
    ensure!(text.contains(before), "expected `extern crate alloc;` in ft-core/src/lib.rs");
    *root = text.replace(before, after).into_bytes();
    Ok(mutants)
}

/// Runs cargo; returns the path of the program `name` that it built.
fn built(tree: &Path, target: &Path, arguments: &[&str], name: &str) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(tree)
        .args(arguments)
        .args(["--offline", "--message-format=json-render-diagnostics"]);
    cargo.arg("--target-dir").arg(target).env("RUSTFLAGS", "-Awarnings");
    let output = cargo.stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the mutated core does not compile: see above");
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines().rev() {
        let artifact: serde_json::Value = match serde_json::from_str(line) {
            Ok(value) => value,
            Err(_) => continue,
        };
        let of = artifact
            .get("target")
            .and_then(|target| target.get("name"))
            .and_then(serde_json::Value::as_str);
        if let (Some(path), true) =
            (artifact.get("executable").and_then(serde_json::Value::as_str), of == Some(name))
        {
            return Ok(path.into());
        }
    }
    bail!("expected cargo to build {name}, found no such program in its messages");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn the_copy_becomes_these_files_and_what_is_the_same_is_not_touched() {
        let tree = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| (PathBuf::from(path), text.as_bytes().to_vec());
        write(tree.path(), &Files::from([file("a/same", "1"), file("old", "2"), file("b", "3")]))
            .unwrap();
        let touched = || fs::metadata(tree.path().join("a/same")).unwrap().modified().unwrap();
        let before = touched();
        let files = Files::from([file("a/same", "1"), file("b", "4"), file("c/new", "5")]);
        write(tree.path(), &files).unwrap();
        let mut found = Files::new();
        read(tree.path(), tree.path(), &mut found).unwrap();
        assert_eq!((found, touched()), (files, before));
    }

    #[test]
    fn a_hash_is_of_what_is_wanted() {
        let files = |text: &str| {
            Files::from([
                (PathBuf::from("ft-core/src/a/tests.rs"), text.into()),
                (PathBuf::from("a/b.rs"), b"b".to_vec()),
            ])
        };
        let (one, other) = (files("1"), files("2"));
        assert_ne!(hash(&one, |_| true), hash(&other, |_| true));
        assert_eq!(hash(&one, |path| !is_test(path)), hash(&other, |path| !is_test(path)));
    }
}
