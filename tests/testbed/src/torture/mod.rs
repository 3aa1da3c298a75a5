//! Torture: runs pair after pair with real faults at random times from a seed, until the time is up
//! or enough failovers have happened. Each pair is a `run-pair` command line, which is printed, so
//! that the same faults can be repeated.

mod plan;
mod summary;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use xtask_common::report_file;

use crate::guest::ensure_programs;
use crate::pair::config::Kill;
use crate::pair::report::RunReport;
pub use plan::{Link, Plan};
use summary::Summary;

/// The program that half of the pairs need as arbiter, and its Debian package.
const ETCD: &[(&str, &str)] = &[("/usr/bin/etcd", "etcd-server")];

/// The pairs to run, and when to stop.
pub struct Torture<'a> {
    /// The pairs and their faults.
    pub plan: Plan,
    /// Stop after this time, at the end of a pair.
    pub time: Option<Duration>,
    /// Stop after this many failovers, at the end of a pair.
    pub failovers: Option<usize>,
    /// The file for the summary as JSON, if any.
    pub json: Option<&'a Path>,
    /// Set to end the run early.
    pub stop: Arc<AtomicBool>,
}

impl Torture<'_> {
    /// Installs the programs that later pairs need. Call it before the first pair, so that a long
    /// run does not fail later.
    ///
    /// # Errors
    /// A program cannot be installed.
    pub fn prepare() -> Result<()> {
        ensure_programs(ETCD, &|line| println!("{line}"))
    }

    /// Runs the pairs, each by `run_pair` with its flags. Returns `true` if every promise held.
    ///
    /// # Errors
    /// A pair broke a promise or could not be judged. The text contains the command line that
    /// repeats it.
    pub fn run(&self, mut run_pair: impl FnMut(&str) -> Result<RunReport>) -> Result<bool> {
        let begun = Instant::now();
        let mut summary = Summary::new(self.plan.seed);
        let mut broken = None;
        for number in 1.. {
            let flags = self.plan.pair(number);
            println!("\npair {number}: cargo xtask run-pair {flags}");
            let report = run_pair(&flags);
            if self.stop.load(Ordering::SeqCst) {
                println!("interrupted: the last pair does not count");
                break;
            }
            match report {
                Ok(report) => {
                    summary.add(&report);
                    broken = first_violation(&report).map(|what| anyhow!(what));
                }
                Err(error) => broken = Some(error),
            }
            println!("so far: {}", summary.line(begun.elapsed()));
            if let Some(reason) = broken.take() {
                let again = format!("pair {number}; again: cargo xtask run-pair {flags}");
                broken = Some(reason.context(again));
                break;
            }
            if self.is_over(begun, &summary) {
                break;
            }
        }
        println!("\n{}\n{}", summary.table(), summary.line(begun.elapsed()));
        let untried = summary.untried(&self.plan.faults);
        if !untried.is_empty() {
            println!("NOT TESTED this time: {}", untried.join(", "));
        }
        if let Some(path) = self.json {
            let text = serde_json::to_string_pretty(&summary)?;
            report_file::write(path, text).context("--json")?;
        }
        match broken {
            Some(reason) => Err(reason),
            None => Ok(summary.held()),
        }
    }

    fn is_over(&self, begun: Instant, summary: &Summary) -> bool {
        self.time.is_some_and(|time| begun.elapsed() >= time)
            || self.failovers.is_some_and(|wanted| summary.failovers() >= wanted)
    }
}

/// All faults that this user may inject. Prints the others.
#[must_use]
pub fn permitted_faults(root: bool) -> Vec<Kill> {
    let (may, may_not): (Vec<Kill>, Vec<Kill>) =
        Kill::ALL.into_iter().partition(|kill| root || !kill.needs_root());
    for kill in may_not {
        println!("NOT TESTED: {}, which needs root", kill.name());
    }
    may
}

/// The first violation in a pair, and its fault.
fn first_violation(report: &RunReport) -> Option<String> {
    let (round, finding) = report.all_findings().next()?;
    let fault = round
        .and_then(|number| report.rounds.iter().find(|round| round.round == number))
        .map(|round| {
            format!(
                "round {}, {} {} ms after its begin",
                round.round,
                round.kill.name(),
                round.killed_after_ms
            )
        });
    Some(format!("{}: {finding}", fault.as_deref().unwrap_or("at the end")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::findings::{Finding, Kind};

    #[test]
    fn what_breaks_is_told_and_counted() {
        let mut report = RunReport::default();
        assert_eq!(first_violation(&report), None);
        report.findings.push(Finding::new(Kind::Lost, "operation 7"));
        report.findings.push(Finding::new(Kind::Behaviour, "exit code 1"));
        assert_eq!(first_violation(&report).unwrap(), "at the end: lost: operation 7");
        let mut summary = Summary::new(1);
        summary.add(&report);
        assert!(!summary.held());
        assert_eq!(summary.untried(&[Kill::Primary, Kill::Reset]), ["primary", "reset"]);
        assert!(summary.line(Duration::ZERO).ends_with("; 2 violations"));
    }

    #[test]
    fn only_root_fills_disks() {
        assert_eq!(permitted_faults(true), Kill::ALL);
        let others = permitted_faults(false);
        assert_eq!(others.len(), Kill::ALL.len() - 2);
        assert!(!others.contains(&Kill::DiskFull) && !others.contains(&Kill::DeletedTap));
    }
}
