//! Runs the compiler for the layer `calls`: in the workspace's own crates it keeps code that is not
//! called, and inlines no function, whatever a crate's profile says.
//!
//! The flags are not for dependencies: there, keeping uncalled code costs time, and keeps code that
//! no function of the far side names. Cargo has no flags for the workspace's crates alone, but can
//! run a wrapper for them: this program itself.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

/// Marks a run of this program as the wrapper.
const MARK: &str = "KEMARI_GATE_RUSTC";

/// Makes `cargo` compile the workspace's crates with their uncalled code.
pub(super) fn keep_uncalled_code(cargo: &mut Command) -> Result<()> {
    let own = env::current_exe().context("cannot name this program's file")?;
    cargo.env("RUSTC_WORKSPACE_WRAPPER", own).env(MARK, "1");
    Ok(())
}

/// Runs the compiler, if cargo has started this program as its wrapper.
pub(crate) fn run_as_compiler() -> Option<ExitCode> {
    env::var_os(MARK)?;
    let mut given = env::args_os().skip(1);
    let mut rustc = Command::new(given.next()?);
    rustc.args(given);
    // If several flags give a level, rustc takes the last one.
    rustc.args(["-Clink-dead-code", "-Copt-level=0"]);
    let error = rustc.exec();
    eprintln!("error: cannot run the compiler: {error}");
    Some(ExitCode::FAILURE)
}
