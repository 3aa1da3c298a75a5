//! The layers `bare` and `linux-core`: compile the crates without std, once for a target that has
//! no operating system, and once for Linux with a sysroot of core and alloc alone, so that no `cfg`
//! hides code.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::compile;
use super::finding::{Finding, Outcome};
use super::rules::{self, Rule};
use super::subject::{LINUX, Subject};
use xtask_common::build;

/// Libraries that stay in the sysroot.
const LEFT: [&str; 3] = ["libcore-", "liballoc-", "libcompiler_builtins-"];

/// Runs the layer `bare`: a target without an operating system.
pub(crate) fn look_bare(subject: &Subject) -> Result<Outcome> {
    build::ensure_bare_target()?;
    look(subject, build::BARE_TARGET, None, &rules::NO_STD_BARE)
}

/// Runs the layer `linux-core`: Linux without std.
pub(crate) fn look_linux(subject: &Subject) -> Result<Outcome> {
    let sysroot = sysroot(subject)?;
    look(subject, LINUX, Some(&sysroot), &rules::NO_STD_LINUX)
}

fn look(
    subject: &Subject,
    target: &str,
    sysroot: Option<&Path>,
    rule: &'static Rule,
) -> Result<Outcome> {
    let mut cargo = subject.cargo("check");
    cargo.args(["--lib", "--all-features", "--keep-going", "--target", target]);
    if let Some(sysroot) = sysroot {
        // With `--target` these flags apply to the target only: serde_derive runs on the host, with
        // the host's std.
        let flags = ["--sysroot".into(), sysroot.as_os_str().to_owned()];
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}".as_ref()));
    }
    for name in &subject.packages {
        cargo.args(["--package", name]);
    }
    let compiled = compile::run(cargo.arg("--target-dir").arg(subject.target.join("core")))?;
    let finding = |said| Finding::new(rule, compile::place(subject, said), compile::words(said));
    Ok(Outcome::Looked(compiled.errors.iter().map(finding).collect()))
}

/// A sysroot for Linux with links to core, alloc and compiler_builtins of the toolchain.
fn sysroot(subject: &Subject) -> Result<PathBuf> {
    let libraries = libraries(subject, LINUX)?;
    let sysroot = subject.target.join("linux-core-sysroot");
    let inside = sysroot.join("lib/rustlib").join(LINUX).join("lib");
    fs::create_dir_all(&inside).with_context(|| format!("cannot make {}", inside.display()))?;
    for old in fs::read_dir(&inside)? {
        let old = old?.path();
        // These links point to a toolchain that was installed here before.
        if old.parent().is_some() && fs::read_link(&old)?.parent() != Some(&*libraries) {
            fs::remove_file(&old)?;
        }
    }
    let mut left = 0;
    for library in fs::read_dir(&libraries)? {
        let library = library?;
        let name = library.file_name();
        let wanted = LEFT.iter().any(|start| name.to_string_lossy().starts_with(start));
        let link = inside.join(&name);
        if wanted {
            left += 1;
            if fs::symlink_metadata(&link).is_err() {
                symlink(library.path(), &link)?;
            }
        }
    }
    ensure!(
        left >= LEFT.len(),
        "expected libcore, liballoc and libcompiler_builtins in {}, found {left} files of them",
        libraries.display()
    );
    Ok(sysroot)
}

/// The directory of the toolchain's libraries for a target.
pub(crate) fn libraries(subject: &Subject, target: &str) -> Result<PathBuf> {
    let output = Command::new("rustc")
        .current_dir(&subject.root)
        .args(["--print", "target-libdir", "--target", target])
        .output()
        .context("cannot run rustc")?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
