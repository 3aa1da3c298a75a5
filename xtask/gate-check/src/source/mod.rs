//! The layer `source`: scans every file of the crates for what the compiler accepts and the gate
//! forbids. In the monitor's files it looks for code that is not in every build, and for names that
//! the code sets for the linker.

mod builds;
mod files;
mod linked;
mod lints;
mod names;
mod scan;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use proc_macro2::{LexError, Span, TokenStream, TokenTree};

pub(crate) use self::builds::FIXED;
pub(crate) use self::files::{Module, files_below, for_tests, modules};
pub(crate) use self::lints::{ALL as LINTS, chapter};
pub(crate) use self::scan::{Mode, Scan};
use super::finding::{Finding, Outcome, Place};
use super::policy::{Exception, FarSide};
use super::rules;
use super::subject::{Subject, package_dir};

/// Maximum nesting of brackets.
const DEEPEST: usize = 128;

/// Runs the layer.
pub(crate) fn look(subject: &Subject) -> Result<Outcome> {
    let mut findings = Vec::new();
    for package in subject.checked()? {
        let directory = package_dir(package);
        let modules = modules(package)?;
        for module in modules.iter().filter(|module| !module.test) {
            let shown = subject.shown(&module.file);
            if !module.file.starts_with(directory) {
                let what = format!("`{}` is compiled into `{}`", shown.display(), package.name);
                findings.push(Finding::new(&rules::OUTSIDE, Some(Place::line(&shown, 1)), what));
            }
            findings.extend(scan_file(module, shown)?);
        }
        for file in files::unreached(directory, &modules)? {
            let place = Place::line(subject.shown(&file), 1);
            findings.push(Finding::new(&rules::UNREACHED, Some(place), "no `mod` names this file"));
        }
    }
    if subject.is_tree() {
        for entry in &subject.policy.far_side {
            findings.extend(far_side(subject, entry)?);
        }
    }
    Ok(Outcome::Looked(except(subject, findings)))
}

/// Checks all files of a far-side crate.
fn far_side(subject: &Subject, entry: &FarSide) -> Result<Vec<Finding>> {
    let features = entry.features.iter().chain(&entry.test_features);
    let features: Vec<&str> = features.map(String::as_str).collect();
    let mut findings = Vec::new();
    for file in files_below(&package_dir(subject.package(&entry.name)?).join("src"))? {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        // Text that cannot be split into tokens does not compile.
        let Ok(tokens) = text.parse::<TokenStream>() else { continue };
        let linked = linked::look(tokens.clone()).into_iter().map(|found| (&rules::LINKED, found));
        let builds = builds::look(tokens, &features).into_iter();
        for (rule, (what, span)) in
            linked.chain(builds.map(|found| (&rules::BUILD_DEPENDENT, found)))
        {
            let start = span.start();
            let place =
                Place { file: subject.shown(&file), line: start.line, column: start.column + 1 };
            findings.push(Finding::new(rule, Some(place), what));
        }
    }
    Ok(findings)
}

fn scan_file(module: &Module, shown: PathBuf) -> Result<Vec<Finding>> {
    let text = fs::read_to_string(&module.file)
        .with_context(|| format!("cannot read {}", module.file.display()))?;
    let parsed = match parse(&text) {
        Ok(parsed) => parsed,
        Err((line, said)) => {
            return Ok(vec![Finding::new(&rules::PARSE, Some(Place::line(shown, line)), said)]);
        }
    };
    let mut scan = Scan::new(Mode::Source, shown);
    if module.path.is_empty() {
        scan.crate_root(&parsed);
    }
    Ok(scan.run(&parsed))
}

/// Parses a file; the error names the line and the reason.
pub(crate) fn parse(text: &str) -> Result<syn::File, (usize, String)> {
    let told = |error: &dyn std::fmt::Display, span: Span| (span.start().line, error.to_string());
    let tokens: TokenStream = text.parse().map_err(|error: LexError| told(&error, error.span()))?;
    // The parser recurses at each bracket.
    if let Some(line) = too_deep(tokens.clone()) {
        return Err((line, format!("more than {DEEPEST} brackets within each other")));
    }
    syn::parse2(tokens).map_err(|error| told(&error, error.span()))
}

/// The line of a bracket that is nested too deeply.
fn too_deep(tokens: TokenStream) -> Option<usize> {
    let mut left = vec![(tokens, 0)];
    while let Some((tokens, depth)) = left.pop() {
        for token in tokens {
            let TokenTree::Group(group) = token else { continue };
            if depth == DEEPEST {
                return Some(group.span_open().start().line);
            }
            left.push((group.stream(), depth + 1));
        }
    }
    None
}

/// Removes the findings that gate.toml allows, and adds a finding for each exception that is not
/// needed.
pub(crate) fn except(subject: &Subject, findings: Vec<Finding>) -> Vec<Finding> {
    let exceptions = &subject.policy.exception;
    let mut used = vec![false; exceptions.len()];
    let mut left: Vec<Finding> = findings
        .into_iter()
        .filter(|finding| {
            let fits = |exception: &Exception| covers(exception, finding);
            let found = exceptions.iter().position(fits);
            found.inspect(|&index| used[index] = true).is_none()
        })
        .collect();
    let stale = exceptions.iter().zip(used).filter(|(_, used)| !used && subject.whole);
    left.extend(stale.map(|(exception, _)| {
        let what = format!("{} in {} is not needed", exception.rule, exception.file.display());
        Finding::new(&rules::EXCEPTION_STALE, Some(Place::line("gate.toml", 1)), what)
    }));
    left
}

fn covers(exception: &Exception, finding: &Finding) -> bool {
    exception.rule == finding.rule
        && finding.what.contains(&exception.about)
        && finding.place.as_ref().is_some_and(|place| place.file == exception.file)
}
