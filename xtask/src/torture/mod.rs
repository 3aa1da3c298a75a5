//! `cargo xtask torture`: pair after pair, each broken by real faults at random moments from a seed, until time is up or
//! enough failovers were seen. Each pair is a `run-pair`, whose command line is printed: it plays the same faults again.

mod plan;
mod summary;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use kemari_tests::pair::config::Kill;

use crate::{run_pair, stop};
use plan::Plan;
use summary::Summary;

/// How long, and which faults.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Stop after so many minutes, at the end of a pair [default: 2, unless --failovers is given].
    #[arg(long)]
    minutes: Option<u64>,
    /// Stop after so many failovers, at the end of a pair.
    #[arg(long)]
    failovers: Option<usize>,
    /// What pairs, faults and moments are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these kinds of fault; see --list.
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    fault: Vec<String>,
    /// Faults in the life of one pair, at most.
    #[arg(long, value_name = "COUNT", default_value_t = 25)]
    rounds: u32,
    /// Say what kinds of fault there are.
    #[arg(long)]
    list: bool,
    /// Write the summary to this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Arguments {
    fn faults(&self) -> Result<Vec<Kill>> {
        if self.fault.is_empty() {
            return Ok(Kill::ALL.to_vec());
        }
        let parse = |name: &String| name.parse().map_err(|error| anyhow!("--fault: {error}"));
        self.fault.iter().map(parse).collect()
    }

    fn is_over(&self, begun: Instant, summary: &Summary) -> bool {
        let minutes = self.minutes.or(self.failovers.is_none().then_some(2));
        minutes.is_some_and(|minutes| begun.elapsed() >= Duration::from_secs(60 * minutes))
            || self.failovers.is_some_and(|wanted| summary.failovers() >= wanted)
    }
}

/// Tortures pairs; `true` when every promise held.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        for kill in Kill::ALL {
            println!("{:<24} {}", kill.name(), kill.what());
        }
        return Ok(true);
    }
    ensure!(arguments.rounds > 0, "--rounds: expected at least 1, found 0");
    let plan = Plan { faults: arguments.faults()?, seed: arguments.seed, rounds: arguments.rounds };
    let (begun, stop) = (Instant::now(), stop::flag()?);
    let mut summary = Summary::new(arguments.seed);
    for number in 1.. {
        let flags = plan.pair(number);
        println!("\npair {number}: cargo xtask run-pair {flags}");
        let report = run_pair::micro_pair(&run_pair::parse(&flags)?);
        if stop.load(Ordering::SeqCst) {
            println!("interrupted: the last pair does not count");
            break;
        }
        summary.add(&report.with_context(|| format!("pair {number}: {flags}"))?);
        println!("so far: {}", summary.line(begun.elapsed()));
        if !summary.held() || arguments.is_over(begun, &summary) {
            break;
        }
    }
    println!("\n{}\n{}", summary.table(), summary.line(begun.elapsed()));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&summary)?;
        std::fs::write(path, text)
            .with_context(|| format!("--json: cannot write {}", path.display()))?;
    }
    Ok(summary.held())
}
