//! Flags of `cargo xtask faults`.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::{JOBS, SEEDS, numbers};

/// A fault of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Fault {
    /// It fails.
    Error,
    /// It transfers half of the requested bytes.
    Short,
    /// It takes long.
    Delay,
    /// It does not return.
    Hang,
}

impl Fault {
    /// All faults, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Error, Self::Short, Self::Delay, Self::Hang];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Short => "short",
            Self::Delay => "delay",
            Self::Hang => "hang",
        }
    }
}

/// The roles of threads in the seccomp lists.
pub const ROLES: [&str; 12] = [
    "main",
    "device",
    "vcpu",
    "lane",
    "link-sender",
    "link-reader",
    "control",
    "signals",
    "terminal",
    "timer",
    "log",
    "audit",
];

/// Make a fault in each system call of each thread of a real pair, and report the results.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask faults", bin_name = "cargo xtask faults")]
pub struct Arguments {
    /// Inject faults only into threads of this role.
    #[arg(long, value_name = "ROLE", value_parser = ROLES)]
    pub only: Option<String>,
    /// Inject faults only into this system call.
    #[arg(long, value_name = "NAME")]
    pub call: Option<String>,
    /// Inject only this fault.
    #[arg(long)]
    pub fault: Option<Fault>,
    /// Only the faults that this file names, one per line, in the format that a run prints. Nothing
    /// is observed first, and a fault that is not reached is a failure.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sample", "once", "table", "observe"])]
    pub cells: Option<PathBuf>,
    /// Inject only this number of them, drawn by `--seed`.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = numbers::<usize>(1..=100_000, "faults"))]
    pub sample: Option<usize>,
    /// For each call of each role, inject each fault once, in one of the threads that make the
    /// call.
    #[arg(long)]
    pub once: bool,
    /// Seed of the sample, and of the choice between similar calls.
    #[arg(long, value_name = "S", default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::<u64>(SEEDS, "a seed"))]
    pub seed: u64,
    /// Number of pairs that run at the same time.
    #[arg(long, default_value_t = 2, allow_negative_numbers = true, value_parser = numbers::<usize>(JOBS, "pairs at once"))]
    pub jobs: usize,
    /// Append the result of each fault to this file, one per line; faults in it are not made again.
    #[arg(long, value_name = "FILE")]
    pub results: Option<PathBuf>,
    /// Write the table to this file, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub table: Option<PathBuf>,
    /// List the calls that a pair makes, and make no fault.
    #[arg(long)]
    pub observe: bool,
    /// The `kemari` to run.
    #[arg(long, overrides_with = "kemari", hide = true, value_name = "FILE")]
    pub kemari: Option<PathBuf>,
    /// The micro-guest to run.
    #[arg(long, overrides_with = "guest", hide = true, value_name = "FILE")]
    pub guest: Option<PathBuf>,
}
