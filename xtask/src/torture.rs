//! `cargo xtask torture`: the command line of [`kemari_testbed::torture`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Args, Parser};
use kemari_flags::{MINUTES, SEEDS, numbers};
use kemari_testbed::pair::config::{Kill, check_root};
use kemari_testbed::pair::report::RunReport;
use kemari_testbed::torture::{Link, Plan, Torture, permitted_faults};
use rustix::process::geteuid;

use crate::{build, list::print_lines, report_file, run_pair, stop};

/// How long, and which faults.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Stop after this many minutes, at the end of a pair [default: 2, unless --failovers is
    /// given].
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::<u64>(MINUTES, "minutes"))]
    minutes: Option<u64>,
    /// Stop after this many failovers, at the end of a pair.
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::<usize>(1..=1_000_000, "failovers"))]
    failovers: Option<usize>,
    /// Seed of the pairs, faults and moments.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::<u64>(SEEDS, "a seed"))]
    seed: u64,
    /// Use only these kinds of fault; see --list.
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
            return Ok(permitted_faults(geteuid().is_root()));
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

    fn time(&self) -> Option<Duration> {
        let minutes = self.minutes.or(self.failovers.is_none().then_some(2));
        minutes.map(|minutes| Duration::from_secs(60 * minutes))
    }
}

/// Tortures pairs; `true` if every promise held.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        print_lines(Kill::ALL.map(|kill| format!("{:<24} {}", kill.name(), kill.what())))?;
        return Ok(true);
    }
    arguments.json.as_deref().map_or(Ok(()), report_file::check).context("--json")?;
    let plan = arguments.plan()?;
    arguments.kemari.as_deref().map_or(Ok(()), build::check_program)?;
    Torture::prepare()?;
    // Build once, not for each pair: a long run then tests one program, even if the tree changes
    // during the run.
    let kemari = arguments.kemari.clone().map_or_else(build::kemari, Ok)?;
    let torture = Torture {
        plan,
        time: arguments.time(),
        failovers: arguments.failovers,
        json: arguments.json.as_deref(),
        stop: stop::flag()?,
    };
    torture.run(|flags| run_one(flags, &kemari))
}

/// Runs the torture with these flags, as from the command line.
pub(crate) fn run_with(flags: &str) -> Result<bool> {
    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        arguments: Arguments,
    }
    println!("cargo xtask torture {flags}");
    let words = std::iter::once("torture").chain(flags.split_whitespace());
    run(&CommandLine::try_parse_from(words)?.arguments)
}

fn run_one(flags: &str, kemari: &Path) -> Result<RunReport> {
    let mut arguments = run_pair::parse(flags)?;
    arguments.kemari = Some(kemari.to_owned());
    run_pair::micro_pair(&arguments)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn plan(link: Link) -> Plan {
        Plan { faults: Kill::ALL.to_vec(), seed: 7, rounds: 25, link }
    }

    /// `run-pair` accepts every planned command line, and every fault and kind of host is planned
    /// soon.
    #[test]
    fn a_few_pairs_have_every_fault_and_every_kind_of_hosts() {
        let plan = plan(Link::Either);
        let mut lines = String::new();
        for number in 1..20 {
            let flags = plan.pair(number);
            let arguments = run_pair::parse(&flags).unwrap();
            let config = arguments.micro_config("kemari".into(), "kernel".into()).unwrap();
            config.check().unwrap();
            assert!(config.kills.len() > 18, "{:?}", config.kills);
            assert!(!config.kills[..config.kills.len() - 1].contains(&Kill::PowerOff));
            lines += &flags;
        }
        for kill in Kill::ALL {
            assert!(lines.contains(kill.name()), "{} never happens", kill.name());
        }
        for flag in ["--loopback", "--tls", "--arbiter etcd", "--cpus 1", "--cpus 2", "--late"] {
            assert!(lines.contains(flag), "{flag} never happens");
        }
    }

    #[test]
    fn links_are_as_wanted_and_both_arbiters_still_happen() {
        for (link, tls) in [(Link::Tls, true), (Link::Plain, false)] {
            let plan = plan(link);
            let pairs: Vec<String> = (1..12).map(|number| plan.pair(number)).collect();
            assert!(pairs.iter().all(|flags| flags.contains("--tls") == tls), "{pairs:?}");
            for arbiter in [true, false] {
                assert!(pairs.iter().any(|flags| flags.contains("etcd") == arbiter));
            }
            for flags in pairs {
                let arguments = run_pair::parse(&flags).unwrap();
                arguments.micro_config("kemari".into(), "kernel".into()).unwrap().check().unwrap();
            }
        }
    }

    #[test]
    fn a_fault_that_there_is_not_is_refused() {
        let error = run_with("--fault thunder").unwrap_err().to_string();
        assert!(error.contains("--fault: expected primary, standby"), "{error}");
        assert!(run_with("--tls --plain").is_err());
    }
}
