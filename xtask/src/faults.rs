//! `cargo xtask faults`: injects a fault into each system call of each thread of a real pair, and
//! records the results.

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser};
use kemari_flags::faults;

use crate::{build, given_file, report_file, run_pair};

/// The calls that any role may make; the tool reads the same list.
const LISTS: &str = include_str!("../../tests/verify/faults/lists.txt");

/// Flags for the tool; see its own `--help`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Flags of the tool.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<String>,
}

/// Runs the tool; `true` if every promise held, and no row of the table is empty without a reason.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    run_with(arguments.flags.iter().map(String::as_str))
}

/// Runs the tool with these flags, as from the command line.
pub(crate) fn run_with<'a>(flags: impl IntoIterator<Item = &'a str>) -> Result<bool> {
    let flags: Vec<&str> = flags.into_iter().collect();
    let words = std::iter::once("faults").chain(flags.iter().copied());
    let read = faults::Arguments::try_parse_from(words).unwrap_or_else(|error| error.exit());
    read.cells.as_deref().map_or(Ok(String::new()), given_file::text).context("--cells")?;
    read.call.as_deref().map_or(Ok(()), check_call)?;
    // Check the files before the run, which takes hours.
    read.results.as_deref().map_or(Ok(()), report_file::check).context("--results")?;
    read.table.as_deref().map_or(Ok(()), report_file::check).context("--table")?;
    read.kemari.as_deref().map_or(Ok(()), build::check_program)?;
    run_pair::check_kvm()?;
    let kemari = read.kemari.map_or_else(build::kemari, Ok)?;
    let guest = read.guest.map_or_else(build::micro_guest, Ok)?;
    // Run in the caller's directory: file names in the flags are relative to it.
    let mut cargo = build::program();
    cargo.arg("run").arg("--manifest-path").arg(build::repository().join("Cargo.toml"));
    cargo.args(["--quiet", "--release", "--locked", "--package", "kemari-faults", "--"]);
    cargo.args(flags).arg("--kemari").arg(kemari).arg("--guest").arg(guest);
    Ok(cargo.status()?.success())
}

/// Checks that a role may make this call. The table of an unknown call would be empty and would
/// pass.
fn check_call(call: &str) -> Result<()> {
    let is_listed = LISTS.lines().any(|line| line.split(' ').nth(1) == Some(call));
    ensure!(
        is_listed,
        "--call: expected a system call of a list in vmm/confine/src/seccomp/filter.rs, found `{call}`"
    );
    Ok(())
}
