//! The layer `expanded`: applies the rules of `source` to the code after macro expansion. A foreign
//! macro may write `unsafe` even where the crate forbids it.
//!
//! The compiler prints expanded code only with unstable features enabled: `RUSTC_BOOTSTRAP` is set
//! for this purpose only, and nothing that is compiled this way is used.

use std::fs;

use anyhow::{Context, Result};
use cargo_metadata::Package;

use super::finding::{Finding, Outcome, Place};
use super::rules;
use super::source::{self, Mode, Module, Scan, except, modules};
use super::subject::{LINUX, Subject};

/// Runs the layer.
pub(crate) fn look(subject: &Subject) -> Result<Outcome> {
    let mut findings = Vec::new();
    for package in subject.checked()? {
        let text = match expand(subject, package)? {
            Ok(text) => text,
            Err(said) => return Ok(Outcome::NotReached(said)),
        };
        let parsed = match source::parse(&text) {
            Ok(parsed) => parsed,
            // A macro of `core` may expand to code that this edition does not accept; `pin!` does.
            Err((_, said)) => {
                let what = format!("what the macros of `{}` expand to: {said}", package.name);
                findings.push(Finding::new(&rules::EXPANDED_PARSE, None, what));
                continue;
            }
        };
        let modules = modules(package)?;
        let found = Scan::new(Mode::Expanded, "expanded".into()).run_within(&parsed);
        for (path, item, mut finding) in found {
            finding.place = place(subject, &modules, &path, &item);
            if !item.is_empty() {
                finding.what = format!("{}, in `{item}` after expansion", finding.what);
            }
            findings.push(finding);
        }
    }
    // Leave out stale exceptions: the layer `source` reports them.
    let stale = |finding: &Finding| finding.rule == rules::EXCEPTION_STALE.id;
    let left = except(subject, findings).into_iter().filter(|finding| !stale(finding)).collect();
    Ok(Outcome::Looked(left))
}

fn expand(subject: &Subject, package: &Package) -> Result<Result<String, String>> {
    let mut cargo = subject.cargo("rustc");
    // Dependencies are checked, not compiled: no code is needed to expand macros.
    cargo.env("RUSTC_BOOTSTRAP", "1").args(["--quiet", "--lib", "--profile", "check"]);
    cargo.args(["--all-features", "--target", LINUX]);
    cargo.args(["--package", package.name.as_str()]);
    cargo.arg("--target-dir").arg(subject.target.join("expanded"));
    let output = cargo.args(["--", "-Zunpretty=expanded"]).output().context("cannot run cargo")?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).map_err(|error| error.to_string()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first =
        said.lines().find(|line| line.starts_with("error")).unwrap_or("cargo failed").to_owned();
    Ok(Err(first))
}

/// The module's file, and the first line in it that names the item.
fn place(subject: &Subject, modules: &[Module], path: &[String], item: &str) -> Option<Place> {
    let within = |module: &&Module| path.starts_with(&module.path);
    let module = modules.iter().filter(within).max_by_key(|module| module.path.len())?;
    let text = fs::read_to_string(&module.file).ok()?;
    let named = |line: &str| {
        let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        !item.is_empty() && words.any(|word| word == item)
    };
    let line = text.lines().position(named).map_or(1, |index| index + 1);
    Some(Place::line(subject.shown(&module.file), line))
}
