//! Runs cargo on the subject and reads the compiler's messages.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use cargo_metadata::diagnostic::{Diagnostic, DiagnosticLevel};
use cargo_metadata::{Message, PackageId};

use super::finding::Place;
use super::subject::Subject;

/// The compiler's error for a missing crate.
const MISSING: &str = "E0463";

/// The result of a compilation.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// The errors, each once.
    pub(crate) errors: Vec<Diagnostic>,
    /// The files that the compilation produced.
    pub(crate) artifacts: Vec<PathBuf>,
}

/// Runs a command made by [`Subject::cargo`].
///
/// # Errors
/// The compilation fails without a compiler error: something is missing on this machine.
pub(crate) fn run(cargo: &mut Command) -> Result<Compiled> {
    run_as_given(cargo.args(["--message-format", "json", "--quiet"]))
}

/// As [`run`], for a command that already asks for JSON messages.
pub(crate) fn run_as_given(cargo: &mut Command) -> Result<Compiled> {
    let output = cargo.output().context("cannot run cargo")?;
    let (mut errors, mut artifacts) = (Vec::new(), Vec::new());
    for message in Message::parse_stream(output.stdout.as_slice()) {
        match message.context("cargo's messages cannot be read")? {
            Message::CompilerMessage(said) if is_error(&said.message) => {
                errors.push((said.package_id, said.message));
            }
            Message::CompilerArtifact(made) => {
                artifacts.extend(made.filenames.into_iter().map(|name| name.into_std_path_buf()));
            }
            _ => {}
        }
    }
    let failed = !output.status.success();
    if failed && errors.is_empty() {
        anyhow::bail!("cargo failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let mut errors = without_consequences(errors);
    errors.dedup_by(|a, b| a.rendered == b.rendered);
    Ok(Compiled { errors, artifacts })
}

/// The errors without those that follow from a missing crate. Where a crate is missing, each name
/// from it is an error too: of such a package only the errors about missing crates stay.
fn without_consequences(errors: Vec<(PackageId, Diagnostic)>) -> Vec<Diagnostic> {
    let is_missing =
        |said: &Diagnostic| said.code.as_ref().is_some_and(|code| code.code == MISSING);
    let missing = errors.iter().filter(|(_, said)| is_missing(said));
    let without: BTreeSet<PackageId> = missing.map(|(package, _)| package.clone()).collect();
    let counts =
        |(package, said): &(PackageId, Diagnostic)| is_missing(said) || !without.contains(package);
    errors.into_iter().filter(counts).map(|(_, said)| said).collect()
}

fn is_error(said: &Diagnostic) -> bool {
    let summary =
        said.message.starts_with("aborting due to") || said.message.contains("previous error");
    matches!(said.level, DiagnosticLevel::Error | DiagnosticLevel::Ice) && !summary
}

/// The place of an error; inside a macro, the place of the macro's call.
pub(crate) fn place(subject: &Subject, said: &Diagnostic) -> Option<Place> {
    let mut span = said.spans.iter().find(|span| span.is_primary)?;
    while let Some(expansion) = &span.expansion {
        span = &expansion.span;
    }
    Some(Place {
        file: subject.shown(subject.root.join(&span.file_name)),
        line: span.line_start,
        column: span.column_start,
    })
}

/// The code and the message of an error, and the label of its place.
pub(crate) fn words(said: &Diagnostic) -> String {
    let code = said.code.as_ref().map(|code| format!("{}: ", code.code)).unwrap_or_default();
    let label = said
        .spans
        .iter()
        .find(|span| span.is_primary)
        .and_then(|span| span.label.as_deref())
        .filter(|label| !said.message.contains(label))
        .map(|label| format!(" ({label})"))
        .unwrap_or_default();
    format!("{code}{}{label}", said.message)
}

/// An error's notes, without those about lint levels and further reading.
pub(crate) fn notes(said: &Diagnostic) -> String {
    said.children
        .iter()
        .filter(|note| !note.message.contains("-F ") && !note.message.starts_with("for further"))
        .map(|note| format!("; {}", note.message))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_from_a_missing_crate_is_left_out_in_its_package_alone() {
        let error = |package: &str, code: &str| {
            let said = serde_json::json!({
                "message": code, "code": { "code": code, "explanation": null }, "level": "error",
                "spans": [], "children": [], "rendered": null,
            });
            let said = serde_json::from_value(said).expect("a message of the compiler");
            (PackageId { repr: package.to_owned() }, said)
        };
        let all = vec![error("a", "E0432"), error("a", "E0463"), error("b", "E0433")];
        let left = without_consequences(all);
        let left: Vec<&str> = left.iter().map(|said| said.message.as_str()).collect();
        assert_eq!(left, ["E0463", "E0433"]);
    }
}
