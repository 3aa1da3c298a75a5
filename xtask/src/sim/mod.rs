//! `cargo xtask sim`: builds the simulation of the protocol core with optimization, and runs it.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use clap::{Args, Parser};
use kemari_flags::{drivers, model, mutants, sim};

use crate::{build, run_pair};

mod defects;

/// Flags for the simulation; see its own `--help`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Flags of the simulation.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<String>,
}

/// The tools; a flag selects each.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tool {
    Simulation,
    Model,
    Mutants,
    Drivers,
}

impl Tool {
    /// Takes the tool's flag out of `flags`; the other flags are for the tool.
    fn take(flags: &mut Vec<&str>) -> Self {
        let words =
            [(Self::Model, "--model"), (Self::Mutants, "--mutants"), (Self::Drivers, "--drivers")];
        for (tool, word) in words {
            if let Some(at) = flags.iter().position(|flag| *flag == word) {
                flags.remove(at);
                return tool;
            }
        }
        Self::Simulation
    }

    fn package(self) -> &'static str {
        match self {
            Self::Simulation => "kemari-sim",
            Self::Model => "kemari-model",
            Self::Mutants => "kemari-mutants",
            Self::Drivers => "kemari-drivers",
        }
    }

    /// Checks the tool's flags before the build, which takes minutes.
    fn check(self, flags: &[&str]) -> Result<(), clap::Error> {
        let words = std::iter::once("sim").chain(flags.iter().copied());
        match self {
            Self::Simulation => sim::Arguments::try_parse_from(words).map(drop),
            Self::Model => model::Arguments::try_parse_from(words).map(drop),
            Self::Mutants => mutants::Arguments::try_parse_from(words).map(drop),
            Self::Drivers => drivers::Arguments::try_parse_from(words).map(drop),
        }
    }
}

/// Runs the tool; `true` if every promise held.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    run_with(arguments.flags.iter().map(String::as_str))
}

/// Runs the tool with these flags, as from the command line.
pub(crate) fn run_with<'a>(flags: impl IntoIterator<Item = &'a str>) -> Result<bool> {
    let mut flags: Vec<&str> = flags.into_iter().collect();
    let tool = Tool::take(&mut flags);
    tool.check(&flags).unwrap_or_else(|error| error.exit());
    if tool == Tool::Drivers && flags.contains(&"--defects") {
        return defects::run(&drivers::Arguments::parse_from(std::iter::once("sim").chain(flags)));
    }
    let mut cargo = build::cargo();
    if tool == Tool::Drivers {
        run_pair::check_kvm()?;
        for_drivers(&mut cargo, "run", &build::target_dir().join("drivers"));
        return Ok(cargo.arg("--").args(flags).status()?.success());
    }
    cargo.args(["run", "--quiet", "--release", "--locked", "--package", tool.package()]);
    if tool == Tool::Simulation && flags.contains(&"--bugs") {
        // Use a separate build directory: a build with deliberate bugs must not lie beside the
        // product.
        cargo.args(["--features", "bugs", "--target-dir"]).arg(build::target_dir().join("bugs"));
    }
    Ok(cargo.arg("--").args(flags).status()?.success())
}

/// Completes a `cargo build` or `run` of the drivers' simulation. It has its own build directory,
/// because it builds the product for replaced C library functions, with scheduling points between
/// branches.
fn for_drivers(cargo: &mut Command, what: &str, target: &Path) {
    cargo
        .env("RUSTC_WORKSPACE_WRAPPER", build::repository().join("tests/verify/drivers/points.sh"))
        .args([what, "--quiet", "--release", "--locked", "--package", Tool::Drivers.package()])
        .args(["--features", "world", "--target-dir"])
        .arg(target);
}
