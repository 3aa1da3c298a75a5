//! The layer `clippy`: checks resolved names against a list of names that a device may not use. The
//! lints are at `forbid` level, so no attribute can switch them off.

use anyhow::{Result, ensure};

use super::compile;
use super::finding::{Finding, Outcome};
use super::rules;
use super::subject::{LINUX, Subject};
use xtask_common::build;

const LINTS: [&str; 3] =
    ["clippy::disallowed_methods", "clippy::disallowed_types", "clippy::disallowed_macros"];

/// Runs the layer.
pub(crate) fn look(subject: &Subject) -> Result<Outcome> {
    let configuration = build::repository().join("xtask/gate-check/configuration");
    ensure!(
        configuration.join("clippy.toml").is_file(),
        "expected {}/clippy.toml",
        configuration.display()
    );
    let mut cargo = subject.cargo("clippy");
    cargo.env("CLIPPY_CONF_DIR", configuration);
    cargo.args(["--lib", "--all-features", "--no-deps", "--keep-going", "--target", LINUX]);
    cargo.arg("--target-dir").arg(subject.target.join("check"));
    for name in &subject.packages {
        cargo.args(["--package", name]);
    }
    // These flags go before `--`, where `compile::run` cannot put them.
    cargo.args(["--message-format", "json", "--quiet", "--"]);
    for lint in LINTS {
        cargo.args(["-F", lint]);
    }
    let compiled = compile::run_as_given(&mut cargo)?;
    let (ours, others): (Vec<_>, Vec<_>) = compiled.errors.iter().partition(|said| {
        let code = said.code.as_ref().map_or("", |code| code.code.as_str());
        // E0453: an attribute tries to switch off a forbidden lint.
        LINTS.contains(&code) || (code == "E0453" && said.message.contains("disallowed_"))
    });
    if ours.is_empty() && !others.is_empty() {
        return Ok(Outcome::NotReached(compile::words(others[0])));
    }
    let finding = |said: &&_| {
        let reason = compile::notes(said);
        Finding::new(&rules::CLIPPY, compile::place(subject, said), compile::words(said) + &reason)
    };
    Ok(Outcome::Looked(ours.iter().map(finding).collect()))
}
