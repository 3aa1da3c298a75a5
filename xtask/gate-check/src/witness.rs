//! `cargo xtask gate --witness`: a second opinion from an independent tool. `cargo acl` (cackle)
//! follows each reference in linked code to the crate that it came from; no crate behind the gate
//! may use std or `unsafe`.
//!
//! The tool checks programs, so it is given a program that links all devices. It then checks the
//! same program with an attack in it, and must report the attack; otherwise a clean result would
//! prove nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::self_test::{Attack, Scratch};
use super::subject::{Subject, package_dir};
use xtask_common::build;

/// The release of cargo-acl that was tested.
const VERSION: &str = "0.9.0";
/// Attacks that the tool can detect, and its message for each.
const SEEN: [(&str, &str); 3] = [
    ("extern-crate-std", "'kemari-devices' uses disallowed API `std`"),
    ("thread-in-a-device", "'kemari-devices' uses disallowed API `std`"),
    ("token-transmuted", "`kemari-devices` uses unsafe"),
];
/// One reference into the devices' only object links all of the object.
const PROGRAM: &str = "//! Holds all devices.\n\nfn main() {\n    std::hint::black_box(<kemari_devices::Beeper as io_gate::Device>::reset as fn(&mut _));\n}\n";

/// Checks the tree and the attacks; `true` when the tool finds nothing in the tree and finds each
/// attack.
pub(crate) fn run() -> Result<bool> {
    let subject = Subject::tree(build::repository(), None, vec!["--locked".to_owned()])?;
    let folder = subject.target.join("witness");
    let tool = tool()?;
    let found = look(&tool, &subject, &folder)?;
    match &found {
        None => println!("cargo-acl finds nothing in {}", subject.packages.join(", ")),
        Some(said) => println!("cargo-acl finds something in the tree:\n{said}"),
    }
    let mut scratch = Scratch::new(&subject, folder.join("tree"))?;
    let attacks = Attack::all(&build::repository().join("xtask/gate-check/attacks"))?;
    let mut passed = found.is_none();
    for (name, expected) in SEEN {
        let attack = attacks.iter().find(|attack| attack.name == name);
        let attack = attack.with_context(|| format!("there is no attack `{name}`"))?;
        let tree = attack.apply(&scratch.clean, &scratch.registry)?;
        scratch.write(&tree)?;
        let attacked = Subject::tree(&scratch.root, None, scratch.flags())?;
        let said = look(&tool, &attacked, &folder)?.unwrap_or_default();
        let seen = said.contains(expected);
        println!("{name:<34} {}", if seen { "seen" } else { "NOT SEEN" });
        if !seen {
            println!("    expected `{expected}`, found:\n{said}");
        }
        passed &= seen;
    }
    Ok(passed)
}

/// The tool's message about a tree, if it finds anything.
fn look(tool: &Path, subject: &Subject, folder: &Path) -> Result<Option<String>> {
    let program = folder.join("program");
    fs::create_dir_all(program.join("src"))
        .with_context(|| format!("cannot make {}", program.display()))?;
    fs::write(program.join("src/main.rs"), PROGRAM)?;
    fs::write(program.join("Cargo.toml"), manifest(subject)?)?;
    fs::copy(subject.root.join("Cargo.lock"), program.join("Cargo.lock"))?;
    fs::copy(
        build::repository().join("xtask/gate-check/configuration/cackle.toml"),
        program.join("cackle.toml"),
    )?;
    fs::copy(subject.root.join("rust-toolchain.toml"), program.join("rust-toolchain.toml"))?;
    let mut acl = Command::new(tool);
    acl.current_dir(&program).args(["acl", "--no-ui", "--no-backtrace", "--colour", "never"]);
    // Code that is never called is checked too.
    acl.env("RUSTFLAGS", "-Clink-dead-code").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let output = acl.output().with_context(|| format!("cannot run {}", tool.display()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() {
        ensure!(said.contains("Completed successfully"), "cargo-acl has not run: {said}");
        return Ok(None);
    }
    ensure!(said.contains("ERROR: "), "cargo-acl could not run: {said}");
    Ok(Some(said))
}

fn manifest(subject: &Subject) -> Result<String> {
    let mut text = "[package]\nname = \"witness\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[profile.cackle]\ninherits = \"dev\"\ncodegen-units = 1\n\n[dependencies]\n".to_owned();
    for name in &subject.packages {
        let path = package_dir(subject.package(name)?);
        text.push_str(&format!("{name} = {{ path = {path:?} }}\n"));
    }
    Ok(text)
}

/// The path of the tool: in PATH, or built into the target directory.
fn tool() -> Result<PathBuf> {
    let name = "cargo-acl";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name));
    if let Some(found) = found.into_iter().find(|path| path.is_file()) {
        return Ok(found);
    }
    let root = build::target_dir().join("tools");
    let tool = root.join("bin").join(name);
    if !tool.is_file() {
        println!("... building cargo-acl {VERSION} (once, for minutes)");
        let mut install = build::program();
        install.args(["install", "--quiet", "--locked", name, "--version", VERSION, "--root"]);
        build::run(install.arg(root))?;
    }
    Ok(tool)
}
