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
    let flags: Vec<&str> = flags.into_iter().collect();
    let mut cargo = build::cargo();
    if let Some(at) = flags.iter().position(|flag| *flag == "--model") {
        cargo.args(["run", "--quiet", "--release", "--locked", "--package", "kemari-model", "--"]);
        return Ok(cargo.args(&flags[..at]).args(&flags[at + 1..]).status()?.success());
    }
    if let Some(at) = flags.iter().position(|flag| *flag == "--mutants") {
        cargo.args([
            "run",
            "--quiet",
            "--release",
            "--locked",
            "--package",
            "kemari-mutants",
            "--",
        ]);
        return Ok(cargo.args(&flags[..at]).args(&flags[at + 1..]).status()?.success());
    }
    cargo.args(["run", "--quiet", "--release", "--locked", "--package", "kemari-sim"]);
    if flags.contains(&"--bugs") {
        // Built in a directory of its own: nothing that can be told to be wrong lies beside the product.
        cargo.args(["--features", "bugs", "--target-dir"]).arg(build::target_dir().join("bugs"));
    }
    Ok(cargo.arg("--").args(flags).status()?.success())
}
