//! The proof of the scaffold: devices of each kind, in a copy of this workspace, go through the
//! steps that their author is told to follow.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use super::{Arguments, Kind, panic, run};
use crate::build::{self, repository};
use crate::{gate, run_pair};

/// One of each kind, and one that is changed so that it panics.
const DEVICES: [(&str, Kind); 3] =
    [("pager", Kind::Virtio), ("rain_gauge", Kind::Mmio), (panic::NAME, Kind::Virtio)];

/// Writes the devices, checks them, and kills their hosts; `true` when every promise is kept.
pub(crate) fn prove() -> Result<bool> {
    let scratch = copy_of_this_workspace()?;
    for (name, kind) in DEVICES {
        let workspace = Some(scratch.path().to_owned());
        run(&Arguments { name: name.to_owned(), kind, dry_run: false, workspace })?;
    }
    panic::put_in(scratch.path())?;
    let tests =
        ["test", "--quiet", "-p", "kemari-devices", "--test", "pager", "--test", "rain_gauge"];
    let lints =
        ["clippy", "--quiet", "-p", "kemari-devices", "--all-targets", "--", "-D", "warnings"];
    for arguments in [&["fmt", "--all", "--", "--check"][..], &tests, &lints] {
        build::run(&mut cargo(scratch.path(), arguments))?;
    }
    panic::is_found(&mut cargo(
        scratch.path(),
        &["test", "--quiet", "-p", "kemari-devices", "--test", panic::NAME, "any_guest"],
    ))?;
    if !gate::passes_at(scratch.path())? {
        return Ok(false);
    }
    // Links what the gate's check has compiled: an optimized build takes minutes more.
    let (kemari, kernel) = (gate::program_at(scratch.path())?, build::micro_guest()?);
    let mut held = true;
    for (name, _) in DEVICES.iter().filter(|(name, _)| *name != panic::NAME) {
        held &= survives(name, &kemari)?;
    }
    panic::ends_both(&kemari, &kernel)?;
    panic::ends_one(&kemari, &kernel)?;
    Ok(held)
}

/// Runs a pair with the device attached, and kills the primary.
fn survives(device: &str, kemari: &Path) -> Result<bool> {
    #[derive(Debug, Parser)]
    struct RunPair {
        #[command(flatten)]
        arguments: run_pair::Arguments,
    }
    let kemari = kemari.display().to_string();
    let words =
        ["run-pair", "--device", device, "--kill", "primary", "--rounds", "2", "--kemari", &kemari];
    run_pair::run(&RunPair::try_parse_from(words)?.arguments)
}

/// Copies the files that git lists for this workspace, with their changes.
fn copy_of_this_workspace() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(repository())
        .output()
        .context("cannot run git")?;
    ensure!(listed.status.success(), "expected the sources in a git repository, found none");
    let files = String::from_utf8(listed.stdout)?;
    for file in files.split('\0').filter(|file| !file.is_empty()) {
        let (from, to) = (repository().join(file), dir.path().join(file));
        // Git still lists a removed file; a link is copied as what it points to.
        if from.is_file() {
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::copy(&from, &to).with_context(|| format!("cannot copy {file}"))?;
        }
    }
    Ok(dir)
}

/// A build directory that outlives the copy, so that dependencies are built once.
fn target() -> std::path::PathBuf {
    build::target_dir().join("new-device")
}

fn cargo(workspace: &Path, arguments: &[&str]) -> Command {
    let mut cargo = build::cargo();
    cargo.current_dir(workspace).args(arguments).env("CARGO_TARGET_DIR", target());
    cargo
}
