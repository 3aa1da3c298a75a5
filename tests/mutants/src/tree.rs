//! A copy of the workspace in which every mutant of the protocol core is compiled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::sites::{self, Mutant};

/// What is copied: the core, what it needs, and who judges it.
const MEMBERS: [&str; 4] = ["io-gate", "ft-core", "tests/flags", "tests/sim"];
const SWITCH: &str = include_str!("switch.rs.txt");

/// The programs that judge, and the mutants in them.
pub(crate) struct Built {
    pub(crate) mutants: Vec<Mutant>,
    pub(crate) simulation: PathBuf,
    pub(crate) unit_tests: PathBuf,
}

/// Makes the copy in `scratch`, and builds it.
pub(crate) fn build(project: &Path, scratch: &Path) -> Result<Built> {
    let tree = scratch.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    for member in MEMBERS {
        copy(&project.join(member), &tree.join(member))?;
    }
    for file in ["Cargo.lock", "rust-toolchain.toml"] {
        fs::copy(project.join(file), tree.join(file)).with_context(|| file.to_owned())?;
    }
    fs::write(tree.join("Cargo.toml"), manifest(project)?)?;
    let mutants = mutate(&tree.join("ft-core/src"))?;
    let target = scratch.join("target");
    let release = ["build", "--release", "--package", "kemari-sim"];
    let simulation = built(&tree, &target, &release, "kemari-sim")?;
    let test = ["test", "--release", "--no-run", "--lib", "--package", "ft-core"];
    let unit_tests = built(&tree, &target, &test, "ft_core")?;
    Ok(Built { mutants, simulation, unit_tests })
}

/// The workspace's own, with fewer members.
fn manifest(project: &Path) -> Result<String> {
    let text = fs::read_to_string(project.join("Cargo.toml"))?;
    let mut manifest: toml::Table = toml::from_str(&text)?;
    let workspace = manifest.get_mut("workspace").and_then(toml::Value::as_table_mut);
    let workspace = workspace.context("Cargo.toml: expected [workspace]")?;
    workspace.insert("members".to_owned(), MEMBERS.map(str::to_owned).to_vec().into());
    workspace.remove("exclude");
    workspace.remove("lints");
    workspace.insert("lints".to_owned(), toml::Table::new().into());
    Ok(toml::to_string(&manifest)?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&path, &target)?;
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

/// Puts the mutants into the sources of the core.
fn mutate(sources: &Path) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    let mut files = Vec::new();
    list(sources, &mut files)?;
    files.sort();
    for path in files {
        let name = path.strip_prefix(sources)?.display().to_string();
        let source = fs::read_to_string(&path)?;
        let text = sites::mutate(&name, &source, &mut mutants).with_context(|| name.clone())?;
        fs::write(&path, text)?;
    }
    fs::write(sources.join("mutants.rs"), SWITCH)?;
    let root = sources.join("lib.rs");
    let text = fs::read_to_string(&root)?;
    ensure!(
        text.contains("\nextern crate alloc;\n"),
        "expected `extern crate alloc;` in {}",
        root.display()
    );
    fs::write(
        &root,
        text.replace("\nextern crate alloc;\n", "\nextern crate alloc;\nmod mutants;\n"),
    )?;
    Ok(mutants)
}

/// Tests and switches are not mutated.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            list(&path, files)?;
        } else if !matches!(name, "tests.rs" | "testing.rs" | "bugs.rs" | "lib.rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Runs cargo, and gives the program of that name that it has built.
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
    bail!("expected cargo to build {name}, found no such program in what it says");
}
