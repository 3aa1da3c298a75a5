//! Flags of `cargo xtask sim`.

use clap::Parser;

use crate::{JOBS, MINUTES, SEEDS, WORLDS, numbers};

/// The other checks of `cargo xtask sim`.
const OTHERS: &str = "\
Each of these runs another check, and has its own flags; add --help:
  --drivers  Run the product's own threads of a pair in an order that a seed decides; with --defects, put past defects back
  --mutants  Put small faults into the protocol core, one at a time, and show which judge finds them
  --model    Explore commit and takeover exhaustively

docs/simulation.md describes all of them.";

/// Run the protocol core in a simulated world with faults, and observe it from outside.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim", after_help = OTHERS)]
pub struct Arguments {
    /// Number of worlds.
    #[arg(long, default_value_t = 10_000, allow_negative_numbers = true, value_parser = numbers::<u64>(WORLDS, "worlds"))]
    pub seeds: u64,
    /// Run only this seed, and print what happens.
    #[arg(long, conflicts_with_all = ["seeds", "minutes"], allow_negative_numbers = true, value_parser = numbers::<u64>(SEEDS, "a seed"))]
    pub seed: Option<u64>,
    /// Run for this many minutes, whatever the number of worlds.
    #[arg(long, conflicts_with = "seeds", allow_negative_numbers = true, value_parser = numbers::<u64>(MINUTES, "minutes"))]
    pub minutes: Option<u64>,
    /// The first seed; by default a random one, which is printed.
    #[arg(long, conflicts_with = "seed", allow_negative_numbers = true, value_parser = numbers::<u64>(SEEDS, "a seed"))]
    pub first: Option<u64>,
    /// Skip the worlds without own disks, three seeds in four. A skipped world counts as run.
    #[arg(long, conflicts_with_all = ["seed", "bugs"])]
    pub own_disks: bool,
    /// Stop at the first world that breaks a promise.
    #[arg(long)]
    pub until_broken: bool,
    /// Put in one deliberate bug after the other, and check that each is found.
    #[arg(long, conflicts_with_all = ["seed", "seeds", "minutes", "until_broken"])]
    pub bugs: bool,
    /// Put in only the deliberate bugs whose name contains this.
    #[arg(long, requires = "bugs")]
    pub only: Option<String>,
    /// Number of searches for each deliberate bug, with different seeds.
    #[arg(long, default_value_t = 5, requires = "bugs", allow_negative_numbers = true, value_parser = numbers::<usize>(1..=1000, "rounds"))]
    pub rounds: usize,
    /// Number of worlds that run at the same time [default: one per core].
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::<usize>(JOBS, "worlds at once"))]
    pub jobs: Option<usize>,
}
