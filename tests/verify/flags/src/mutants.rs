//! Flags of `cargo xtask sim --mutants`.

use clap::Parser;

use crate::{JOBS, SEEDS, WORLDS, numbers};

/// Put small faults into the protocol core, one at a time, and see who finds them.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim --mutants", bin_name = "cargo xtask sim --mutants")]
pub struct Arguments {
    /// Worlds that may not show a mutant before it counts as one that the simulation cannot see.
    #[arg(long, default_value_t = 4000, allow_negative_numbers = true, value_parser = numbers::<u64>(WORLDS, "worlds"))]
    pub seeds: u64,
    /// Only mutants whose name contains this.
    #[arg(long)]
    pub only: Option<String>,
    /// Every so many of them only: the same each time.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::<usize>(1..=100_000, "a step"))]
    pub every: usize,
    /// So many of them only, drawn by `--seed`: the same each time, whatever was added to the core.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = numbers::<usize>(1..=100_000, "mutants"))]
    pub sample: Option<usize>,
    /// Which sample.
    #[arg(long, value_name = "S", default_value_t = 1, requires = "sample", allow_negative_numbers = true, value_parser = numbers::<u64>(SEEDS, "a seed"))]
    pub seed: u64,
    /// Do not ask the unit tests.
    #[arg(long)]
    pub simulation_only: bool,
    /// Ask the simulation about what the unit tests have found as well.
    #[arg(long, conflicts_with = "simulation_only")]
    pub both: bool,
    /// Say what mutants there are.
    #[arg(long)]
    pub list: bool,
    /// Say of each mutant who has found it.
    #[arg(long)]
    pub all: bool,
    /// Mutants at once [default: one per core].
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::<usize>(JOBS, "mutants at once"))]
    pub jobs: Option<usize>,
}
