//! `cargo xtask torture`: runs pair after pair and breaks each by real faults at random moments from a seed, until the
//! time is up or enough failovers were seen. Each pair is a `run-pair` whose command line is printed, so the same faults
//! can be repeated.

mod plan;
mod summary;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::{Args, Parser};
use kemari_flags::{MINUTES, SEEDS, numbers};
use kemari_testbed::pair::config::{Kill, check_root};
use kemari_testbed::pair::report::RunReport;
use rustix::process::geteuid;

use crate::{build, run_pair, stop};
use plan::{Link, Plan};
use summary::Summary;

/// The arbiter of every other pair, and its Debian package.
const ETCD: &[(&str, &str)] = &[("/usr/bin/etcd", "etcd-server")];

/// How long, and which faults.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Stop after this many minutes, at the end of a pair [default: 2, unless --failovers is given].
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::<u64>(MINUTES, "minutes"))]
    minutes: Option<u64>,
    /// Stop after this many failovers, at the end of a pair.
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::<usize>(1..=1_000_000, "failovers"))]
    failovers: Option<usize>,
    /// Seed of the pairs, faults and moments.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::<u64>(SEEDS, "a seed"))]
    seed: u64,
    /// Only these kinds of fault; see --list.
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    fault: Vec<String>,
    /// Maximum number of faults in one pair.
    #[arg(long, value_name = "COUNT", default_value_t = 25, allow_negative_numbers = true, value_parser = numbers::<u32>(1..=100_000, "faults"))]
    rounds: u32,
    /// Encrypt and authenticate every replication link [default: every other one].
    #[arg(long, conflicts_with = "plain")]
    tls: bool,
    /// Encrypt no replication link.
    #[arg(long)]
    plain: bool,
    /// Run this program, instead of building it.
    #[arg(long, value_name = "FILE", hide = true)]
    kemari: Option<PathBuf>,
    /// List the kinds of fault.
    #[arg(long)]
    list: bool,
    /// Write the summary to this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Arguments {
    fn faults(&self) -> Result<Vec<Kill>> {
        if self.fault.is_empty() {
            return Ok(all(geteuid().is_root()));
        }
        let parse = |name: &String| name.parse().map_err(|error| anyhow!("--fault: {error}"));
        let faults: Vec<Kill> = self.fault.iter().map(parse).collect::<Result<_>>()?;
        check_root(&faults)?;
        Ok(faults)
    }

    fn plan(&self) -> Result<Plan> {
        let link = match (self.tls, self.plain) {
            (true, _) => Link::Tls,
            (_, true) => Link::Plain,
            _ => Link::Either,
        };
        Ok(Plan { faults: self.faults()?, seed: self.seed, rounds: self.rounds, link })
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
    arguments.json.as_deref().map_or(Ok(()), crate::report_file::check).context("--json")?;
    let plan = arguments.plan()?;
    arguments.kemari.as_deref().map_or(Ok(()), build::check_program)?;
    // Before the first pair: a long run must not end because a later pair needs it.
    crate::guest::ensure_programs(ETCD, &|line| println!("{line}"))?;
    // Once, not for each pair: a long run tests one program, even if the tree changes during the run.
    let kemari = arguments.kemari.clone().map_or_else(build::kemari, Ok)?;
    let (begun, stop) = (Instant::now(), stop::flag()?);
    let mut summary = Summary::new(arguments.seed);
    let mut broken = None;
    for number in 1.. {
        let flags = plan.pair(number);
        println!("\npair {number}: cargo xtask run-pair {flags}");
        let report = run_one(&flags, &kemari);
        if stop.load(Ordering::SeqCst) {
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
        if arguments.is_over(begun, &summary) {
            break;
        }
    }
    println!("\n{}\n{}", summary.table(), summary.line(begun.elapsed()));
    let untried = summary.untried(&plan.faults);
    if !untried.is_empty() {
        println!("NOT TESTED this time: {}", untried.join(", "));
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&summary)?;
        crate::report_file::write(path, text).context("--json")?;
    }
    match broken {
        Some(reason) => Err(reason),
        None => Ok(summary.held()),
    }
}

/// As from the command line.
pub(crate) fn run_with(flags: &str) -> Result<bool> {
    #[derive(Debug, Parser)]
    struct Torture {
        #[command(flatten)]
        arguments: Arguments,
    }
    println!("cargo xtask torture {flags}");
    let words = std::iter::once("torture").chain(flags.split_whitespace());
    run(&Torture::try_parse_from(words)?.arguments)
}

/// All faults that this user may make.
fn all(root: bool) -> Vec<Kill> {
    let (may, may_not): (Vec<Kill>, Vec<Kill>) =
        Kill::ALL.into_iter().partition(|kill| root || !kill.needs_root());
    for kill in may_not {
        println!("NOT TESTED: {}, which needs root", kill.name());
    }
    may
}

fn run_one(flags: &str, kemari: &Path) -> Result<RunReport> {
    let mut arguments = run_pair::parse(flags)?;
    arguments.kemari = Some(kemari.to_owned());
    run_pair::micro_pair(&arguments)
}

/// The first thing that broke in a pair, and under which fault.
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
    use kemari_testbed::findings::{Finding, Kind};

    use super::*;

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
        assert_eq!(all(true), Kill::ALL);
        let others = all(false);
        assert_eq!(others.len(), Kill::ALL.len() - 2);
        assert!(!others.contains(&Kill::DiskFull) && !others.contains(&Kill::DeletedTap));
    }

    #[test]
    fn a_fault_that_there_is_not_is_refused() {
        let error = run_with("--fault thunder").unwrap_err().to_string();
        assert!(error.contains("--fault: expected primary, standby"), "{error}");
        assert!(run_with("--tls --plain").is_err());
    }
}
