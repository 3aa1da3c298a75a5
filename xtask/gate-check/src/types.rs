//! The layer `types`: the crates as rustc compiles them. Every error is a finding. Every file that
//! rustc read and the other layers did not check is a finding too.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use cargo_metadata::Package;
use cargo_metadata::diagnostic::Diagnostic;

use super::compile::{self, Compiled};
use super::dep_info::DepInfo;
use super::finding::{Finding, Outcome, Place};
use super::rules::{self, Rule};
use super::subject::{LINUX, Subject, library_name};

/// The borrow checker's errors for a value that is kept too long.
const KEPT: [&str; 10] =
    ["E0310", "E0499", "E0502", "E0505", "E0506", "E0521", "E0597", "E0621", "E0700", "E0716"];
/// The compiler's errors for a value that is made where that is not allowed.
const PRIVATE: [&str; 6] = ["E0423", "E0451", "E0603", "E0616", "E0624", "E0639"];
/// The types that the rules are about.
const GATED: [&str; 16] = [
    "EffectToken",
    "Held",
    "Pending",
    "Verdict",
    "Gate",
    "Committed",
    "Alone",
    "Performable",
    "Listable",
    "Place",
    "Recorded",
    "Marked",
    "Completable",
    "DurableEpoch",
    "WonTerm",
    "ImageRight",
];

/// Types and methods that lend guest memory.
const LENT: [&str; 2] = ["Chain", "chain"];

/// Runs the layer.
pub(crate) fn look(subject: &Subject) -> Result<Outcome> {
    let compiled = compile(subject)?;
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

/// Compiles the crates as this layer does.
pub(crate) fn compile(subject: &Subject) -> Result<Compiled> {
    let mut cargo = subject.cargo("check");
    cargo.args(["--lib", "--all-features", "--keep-going", "--target", LINUX]);
    for name in subject.packages.iter().chain(&subject.compiled) {
        cargo.args(["--package", name]);
    }
    compile::run(cargo.arg("--target-dir").arg(subject.target.join("check")))
}

/// Compares the files that rustc read with the files that the scans check.
fn files(subject: &Subject, package: &Package, compiled: &Compiled) -> Result<Vec<Finding>> {
    let read = DepInfo::of_library(subject, compiled, &library_name(package)?)?.files;
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
    let unseen = only(&read, &scanned, "is compiled, and no layer checks it");
    Ok([unseen, only(&scanned, &read, "is checked, and not compiled")].concat())
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
