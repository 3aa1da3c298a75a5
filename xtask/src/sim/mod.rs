//! `cargo xtask sim`: the protocol core in a simulated world, built with optimization and run.

use anyhow::Result;
use clap::Args;

use crate::build;

/// What is given on to the simulation; see its own `--help`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Flags of the simulation.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<String>,
}

/// Runs it; `true` when no promise was broken.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    run_with(arguments.flags.iter().map(String::as_str))
}

/// As from the command line.
pub(crate) fn run_with<'a>(flags: impl IntoIterator<Item = &'a str>) -> Result<bool> {
    let mut cargo = build::cargo();
    cargo.args(["run", "--quiet", "--release", "--locked", "--package", "kemari-sim", "--"]);
    Ok(cargo.args(flags).status()?.success())
}
