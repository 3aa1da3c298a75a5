//! Runs cargo on the subject and reads the compiler's messages.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use cargo_metadata::Message;
use cargo_metadata::diagnostic::{Diagnostic, DiagnosticLevel};

use super::finding::Place;
use super::subject::Subject;

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
            Message::CompilerMessage(said) if is_error(&said.message) => errors.push(said.message),
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
    errors.dedup_by(|a, b| a.rendered == b.rendered);
    Ok(Compiled { errors, artifacts })
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

/// The code and the message of an error, and its first note or label.
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

/// An error's notes that are not about lint levels.
pub(crate) fn notes(said: &Diagnostic) -> String {
    said.children
        .iter()
        .filter(|note| !note.message.contains("-F ") && !note.message.starts_with("for further"))
        .map(|note| format!("; {}", note.message))
        .collect()
}
