//! The layer `types`: the crates as rustc compiles them. Every error is a finding, and so is every file that rustc has read and
//! the other layers have not looked at.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::Package;
use cargo_metadata::diagnostic::Diagnostic;

use super::compile::{self, Compiled};
use super::finding::{Finding, Outcome, Place};
use super::rules::{self, Rule};
use super::subject::{LINUX, Subject, library_name};

/// What the borrow checker says of a value that is kept too long.
const KEPT: [&str; 10] =
    ["E0310", "E0499", "E0502", "E0505", "E0506", "E0521", "E0597", "E0621", "E0700", "E0716"];
/// What the compiler says of a value that is made where it must not be.
const PRIVATE: [&str; 6] = ["E0423", "E0451", "E0603", "E0616", "E0624", "E0639"];
/// The types of which the rules are about.
const GATED: [&str; 8] =
    ["EffectToken", "Held", "Pending", "Verdict", "Gate", "Committed", "Alone", "Performable"];

/// What lends guest memory.
const LENT: [&str; 2] = ["Chain", "chain"];

/// Looks.
pub(crate) fn look(subject: &Subject) -> Result<Outcome> {
    let mut cargo = subject.cargo("check");
    cargo.args(["--lib", "--all-features", "--keep-going", "--target", LINUX]);
    for name in subject.packages.iter().chain(&subject.compiled) {
        cargo.args(["--package", name]);
    }
    let compiled = compile::run(cargo.arg("--target-dir").arg(subject.target.join("check")))?;
    let finding = |said: &Diagnostic| {
        Finding::new(rule(said), compile::place(subject, said), compile::words(said))
    };
    let mut findings: Vec<Finding> = compiled.errors.iter().map(finding).collect();
    if findings.is_empty() {
        for package in subject.checked()? {
            findings.extend(files(subject, package, &compiled)?);
        }
    }
    Ok(Outcome::Looked(findings))
}

/// Compares the files that rustc says it has read with those that the scans look at.
fn files(subject: &Subject, package: &Package, compiled: &Compiled) -> Result<Vec<Finding>> {
    let read = read_by_rustc(subject, package, compiled)?;
    let scanned = super::source::modules(package)?;
    let scanned: BTreeSet<PathBuf> =
        scanned.into_iter().filter(|module| !module.test).map(|module| module.file).collect();
    let only = |these: &BTreeSet<PathBuf>, others: &BTreeSet<PathBuf>, what: &str| {
        let difference = these.difference(others);
        let finding = |file: &PathBuf| {
            let shown = subject.shown(file);
            let what = format!("`{}` {what}", shown.display());
            Finding::new(&rules::FILES, Some(Place::line(shown, 1)), what)
        };
        difference.map(finding).collect::<Vec<_>>()
    };
    let unseen = only(&read, &scanned, "is compiled, and no layer looks at it");
    Ok([unseen, only(&scanned, &read, "is looked at, and not compiled")].concat())
}

/// What rustc says it has read to compile a package (its dep-info).
fn read_by_rustc(
    subject: &Subject,
    package: &Package,
    compiled: &Compiled,
) -> Result<BTreeSet<PathBuf>> {
    let start = format!("lib{}-", library_name(package)?);
    let file_name =
        |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let made = compiled.artifacts.iter().find(|path| file_name(path).starts_with(&start));
    let made = made.with_context(|| format!("cargo has made nothing of `{}`", package.name))?;
    let name = file_name(made).trim_start_matches("lib").to_owned();
    let info = made.with_file_name(name).with_extension("d");
    let text =
        fs::read_to_string(&info).with_context(|| format!("cannot read {}", info.display()))?;
    let sources =
        text.lines().find_map(|line| line.split_once(": ")).map_or("", |(_, files)| files);
    // A blank within a name is written with a backslash.
    let names = sources.replace("\\ ", "\0");
    Ok(names.split_whitespace().map(|name| subject.root.join(name.replace('\0', " "))).collect())
}

fn rule(said: &Diagnostic) -> &'static Rule {
    let code = said.code.as_ref().map_or("", |code| code.code.as_str());
    let rendered = said.rendered.as_deref().unwrap_or_default();
    let gated = GATED.iter().any(|name| rendered.contains(name));
    let borrowed =
        KEPT.contains(&code) || said.message.contains("lifetime may not live long enough");
    let lends = LENT.iter().any(|name| rendered.contains(name));
    match code {
        "E0382" if gated => &rules::TOKEN_TWICE,
        _ if PRIVATE.contains(&code) && gated => &rules::PRIVATE,
        _ if borrowed && lends && !rendered.contains("Token") => &rules::CHAIN_KEPT,
        _ if borrowed && gated => &rules::TOKEN_KEPT,
        _ => &rules::COMPILE,
    }
}
