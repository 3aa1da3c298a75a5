//! Runs a benchmark: builds the programs, measures the wanted parts, and describes the machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use kemari_testbed::kvm;
use kemari_testbed::terminal::Terminal;
use xtask_common::{build, stop};

use super::{Measure, peer};
use crate::data::{FORMAT, Report, Skipped};
use crate::measure::{Bench, check_parts};

/// The part that this program measures: only this program can install QEMU.
const PEERS: &str = "peers";

/// Measures the wanted parts; returns the report.
pub(super) fn run(wanted: &Measure, terminal: &Terminal) -> Result<Report> {
    let stop = stop::flag()?;
    let (peers, own): (Vec<_>, Vec<_>) =
        wanted.only.iter().cloned().partition(|part| part == PEERS);
    check_parts(&own)?;
    wanted.kemari.as_deref().map_or(Ok(()), build::check_program)?;
    kvm::check()?;
    let built = terminal.aside("building kemari and the micro-guest", || -> Result<_> {
        let kemari = wanted.kemari.clone().map_or_else(build::kemari, Ok)?;
        Ok((kemari, build::micro_guest()?))
    });
    let (kemari, kernel) = built?;
    let begun = Instant::now();
    let bench = Bench {
        kemari: &kemari,
        kernel: &kernel,
        quick: wanted.quick,
        flags: &wanted.flags,
        progress: terminal,
        stop,
    };
    let mut groups =
        if peers.is_empty() || !own.is_empty() { bench.run(&own)? } else { Vec::new() };
    let mut skipped = Vec::new();
    if !peers.is_empty() || (own.is_empty() && !wanted.quick) {
        let found = measure_peers(&bench)?;
        groups.extend(found.groups);
        skipped = found.skipped;
    } else if own.is_empty() {
        let why = "not in a --quick run; --only peers measures them".to_owned();
        skipped.push(Skipped { what: "the comparison with QEMU".to_owned(), why });
    }
    Ok(Report {
        format: FORMAT,
        revision: revision(),
        machine: machine(&kemari),
        quick: wanted.quick,
        seconds: begun.elapsed().as_secs(),
        groups,
        skipped,
    })
}

/// Measures QEMU with the same guest.
fn measure_peers(bench: &Bench<'_>) -> Result<peer::Measured> {
    peer::measure(&peer::Options {
        kemari: bench.kemari,
        guest: bench.kernel,
        scratch: &std::env::temp_dir(),
        memory: 128,
        sets: &[16, 128, 1024],
        quick: bench.quick,
        stop: bench.stop.clone(),
        say: &|what| bench.progress.step(what),
    })
}

/// The commit from which the tree is built; empty if unknown.
fn revision() -> String {
    let git = |arguments: &[&str]| -> Option<String> {
        let mut git = Command::new("git");
        let output = git.arg("-C").arg(build::repository()).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    let mark = if changed.is_some_and(|changed| !changed.is_empty()) { "+" } else { "" };
    git(&["rev-parse", "--short", "HEAD"]).map_or_else(String::new, |commit| commit + mark)
}

/// Facts that identify the machine.
fn machine(kemari: &Path) -> BTreeMap<String, String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let facts = [
        ("processor", field(&read("/proc/cpuinfo"), "model name")),
        ("cores", Some(cores.to_string())),
        ("memory", field(&read("/proc/meminfo"), "MemTotal")),
        ("kernel", Some(read("/proc/sys/kernel/osrelease").trim().to_owned())),
        ("kvm", kvm::probe_host(kemari).ok().map(|probe| probe.reason)),
    ];
    facts.into_iter().filter_map(|(name, fact)| Some((name.to_owned(), fact?))).collect()
}
