//! The layer `types`: the crates as rustc compiles them. Every error is a finding.

use anyhow::Result;
use cargo_metadata::diagnostic::Diagnostic;

use super::compile;
use super::finding::{Finding, Outcome};
use super::rules::{self, Rule};
use super::subject::{LINUX, Subject};

/// What the borrow checker says of a value that is kept too long.
const KEPT: [&str; 10] =
    ["E0310", "E0499", "E0502", "E0505", "E0506", "E0521", "E0597", "E0621", "E0700", "E0716"];
/// What the compiler says of a value that is made where it must not be.
const PRIVATE: [&str; 6] = ["E0423", "E0451", "E0603", "E0616", "E0624", "E0639"];
/// The types of which the rules are about.
const GATED: [&str; 8] =
    ["EffectToken", "Held", "Pending", "Verdict", "Gate", "Committed", "Alone", "Performable"];

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
    Ok(Outcome::Looked(compiled.errors.iter().map(finding).collect()))
}

fn rule(said: &Diagnostic) -> &'static Rule {
    let code = said.code.as_ref().map_or("", |code| code.code.as_str());
    let rendered = said.rendered.as_deref().unwrap_or_default();
    let gated = GATED.iter().any(|name| rendered.contains(name));
    let borrowed =
        KEPT.contains(&code) || said.message.contains("lifetime may not live long enough");
    match code {
        "E0382" if gated => &rules::TOKEN_TWICE,
        _ if PRIVATE.contains(&code) && gated => &rules::PRIVATE,
        _ if borrowed && gated => &rules::TOKEN_KEPT,
        _ => &rules::COMPILE,
    }
}
