//! Flags of `cargo xtask sim --drivers`.

use clap::{Parser, ValueEnum};

use crate::{JOBS, SEEDS, WORLDS, numbers};

/// What happens in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Story {
    /// Random faults.
    Any,
    /// Each side asks an arbiter of its own.
    TwoArbiters,
    /// The guest powers itself off.
    PowersOff,
    /// A thread of a session is delayed until the next session has begun.
    OldSession,
    /// A machine with output to write is stopped, replaced, and goes on.
    Replaced,
    /// The primary's arbiter answers slowly, and its link is cut.
    SlowFence,
    /// The primary is ordered to end.
    Ends,
    /// The guest's console is not read.
    Unread,
    /// The guest is taken over, protected again, and taken over once more.
    Twice,
    /// Nothing fails.
    Calm,
    /// The operator changes the standby's address.
    OtherStandby,
    /// A thread of the primary hangs.
    Hangs,
    /// The standby is ordered to end.
    Leaves,
    /// The guest resets itself repeatedly.
    Resets,
    /// The primary gets a second order to end.
    SecondSignal,
    /// The primary dies as its first checkpoints are acknowledged.
    FirstCheckpoint,
}

/// Run the real threads of a pair in an order that a seed decides, and judge what leaves them.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim --drivers", bin_name = "cargo xtask sim --drivers")]
pub struct Arguments {
    /// Number of worlds, each in a process of its own.
    #[arg(long, default_value_t = 200, allow_negative_numbers = true, value_parser = numbers::<u64>(WORLDS, "worlds"))]
    pub seeds: u64,
    /// Run only this seed, and print what happens.
    #[arg(long, conflicts_with = "seeds", allow_negative_numbers = true, value_parser = numbers::<u64>(SEEDS, "a seed"))]
    pub seed: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1, conflicts_with = "seed", allow_negative_numbers = true, value_parser = numbers::<u64>(SEEDS, "a seed"))]
    pub first: u64,
    /// Stop at the first world that breaks a promise.
    #[arg(long)]
    pub until_broken: bool,
    /// Run only worlds with this story; by default the stories take turns.
    #[arg(long)]
    pub story: Option<Story>,
    /// Fail as well if a kind of event that can happen in a world happens in none: a reset, a
    /// takeover, a slow fence.
    #[arg(long, conflicts_with_all = ["seed", "until_broken", "story"])]
    pub every_kind: bool,
    /// Number of worlds that run at the same time.
    #[arg(long, default_value_t = 2, allow_negative_numbers = true, value_parser = numbers::<u64>(JOBS, "worlds at once"))]
    pub jobs: u64,
    /// Put each defect of tests/verify/drivers/defects.toml back into a copy of the tree, and check
    /// that it is found.
    #[arg(long, conflicts_with_all = ["seed", "seeds", "until_broken", "story", "every_kind"])]
    pub defects: bool,
    /// Put back only the defects whose name contains this.
    #[arg(long, requires = "defects")]
    pub only: Option<String>,
    /// Number of searches for each defect, with different seeds.
    #[arg(long, default_value_t = 3, requires = "defects", allow_negative_numbers = true, value_parser = numbers::<u64>(1..=1000, "rounds"))]
    pub rounds: u64,
    /// The world of a process that was started for it.
    #[arg(long, hide = true)]
    pub child: Option<u64>,
}
