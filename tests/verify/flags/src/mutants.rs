//! Flags of `cargo xtask sim --mutants`.

use clap::Parser;

use crate::{JOBS, SEEDS, WORLDS, numbers};

/// Put small faults into the protocol core, one at a time, and show which judge finds them.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim --mutants", bin_name = "cargo xtask sim --mutants")]
pub struct Arguments {
    /// Number of worlds in which a mutant must show; otherwise it counts as invisible to the
    /// simulation.
    #[arg(long, default_value_t = 4000, allow_negative_numbers = true, value_parser = numbers::<u64>(WORLDS, "worlds"))]
    pub seeds: u64,
    /// Judge only mutants whose name contains this.
    #[arg(long)]
    pub only: Option<String>,
    /// Judge only each Nth mutant: the same ones each time.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::<usize>(1..=100_000, "a step"))]
    pub every: usize,
    /// Judge only N mutants, drawn by `--seed`. A seed draws the same mutants even after others
    /// were added to the core.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = numbers::<usize>(1..=100_000, "mutants"))]
    pub sample: Option<usize>,
    /// Seed of the sample.
    #[arg(long, value_name = "S", default_value_t = 1, requires = "sample", allow_negative_numbers = true, value_parser = numbers::<u64>(SEEDS, "a seed"))]
    pub seed: u64,
    /// Do not run the unit tests.
    #[arg(long)]
    pub simulation_only: bool,
    /// Run the simulation also on mutants that the unit tests have found.
    #[arg(long, conflicts_with = "simulation_only")]
    pub both: bool,
    /// List the mutants.
    #[arg(long)]
    pub list: bool,
    /// Print for each mutant which judge has found it.
    #[arg(long)]
    pub all: bool,
    /// Number of mutants judged at the same time [default: one per core].
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::<usize>(JOBS, "mutants at once"))]
    pub jobs: Option<usize>,
}
