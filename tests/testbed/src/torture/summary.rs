//! The summary of all pairs.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::pair::config::Kill;
use crate::pair::report::RunReport;

/// The results of one fault.
#[derive(Debug, Default, Serialize)]
struct Row {
    fault: &'static str,
    rounds: usize,
    failovers: usize,
    /// Number of rounds in which a living side lost the right to run.
    refused: usize,
    /// Times from suspicion until the guest runs, in microseconds.
    takeover_us: Vec<u64>,
    longest_gap_ms: f64,
    /// The longest time until the guest was protected again, in milliseconds.
    protected_again_ms: u64,
    violations: usize,
}

/// The results of all pairs: one row for each fault, and the counts of the run.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    seed: u64,
    pairs: usize,
    operations: u64,
    /// Number of operations that were judged as one history.
    judged: u64,
    /// Number of takeovers that happened without an injected fault.
    unasked: u32,
    /// Number of guests that died with a primary that had just lost its standby.
    died_alone: u32,
    /// The largest memory of one process in MiB, and its limit.
    peak_memory_mib: u64,
    memory_bound_mib: u64,
    rows: Vec<Row>,
    /// Number of violations outside of any round.
    violations: usize,
}

impl Summary {
    pub(super) fn new(seed: u64) -> Self {
        let row = |kill: Kill| Row { fault: kill.name(), ..Row::default() };
        let rows = Kill::ALL.map(row).into();
        let (peak_memory_mib, memory_bound_mib) = (0, 0);
        Self {
            seed,
            pairs: 0,
            operations: 0,
            judged: 0,
            unasked: 0,
            died_alone: 0,
            peak_memory_mib,
            memory_bound_mib,
            rows,
            violations: 0,
        }
    }

    pub(super) fn add(&mut self, report: &RunReport) {
        self.pairs += 1;
        self.operations += report.operations;
        self.judged += report.judged;
        self.unasked += report.unasked;
        self.died_alone += u32::from(report.died_alone);
        self.peak_memory_mib = self.peak_memory_mib.max(report.peak_memory_mib);
        self.memory_bound_mib = self.memory_bound_mib.max(report.memory_bound_mib);
        self.violations += report.findings.len();
        if report.died_at_power_off {
            let name = Kill::PowerOff.name();
            self.rows.iter_mut().filter(|row| row.fault == name).for_each(|row| row.rounds += 1);
        }
        for round in &report.rounds {
            let name = round.kill.name();
            let Some(row) = self.rows.iter_mut().find(|row| row.fault == name) else { continue };
            row.rounds += 1;
            row.failovers += usize::from(round.before != round.after);
            row.refused += usize::from(round.refused);
            row.takeover_us.extend(round.takeover_us);
            row.longest_gap_ms = row.longest_gap_ms.max(round.longest_gap_ms);
            row.protected_again_ms =
                row.protected_again_ms.max(round.protected_again_ms.unwrap_or(0));
            row.violations += round.findings.len();
        }
    }

    fn sum(&self, of: impl Fn(&Row) -> usize) -> usize {
        self.rows.iter().map(of).sum()
    }

    pub(super) fn failovers(&self) -> usize {
        self.sum(|row| row.failovers)
    }

    /// The wanted faults that no pair has injected.
    pub(super) fn untried(&self, wanted: &[Kill]) -> Vec<&'static str> {
        let is_tried = |name: &str| self.rows.iter().any(|row| row.fault == name && row.rounds > 0);
        wanted.iter().map(|kill| kill.name()).filter(|name| !is_tried(name)).collect()
    }

    fn all_violations(&self) -> usize {
        self.violations + self.sum(|row| row.violations)
    }

    /// Whether at least one fault was injected and no promise was broken.
    pub(super) fn held(&self) -> bool {
        self.all_violations() == 0 && self.sum(|row| row.rounds) > 0
    }

    /// The summary in one line.
    pub(super) fn line(&self, time: Duration) -> String {
        let mut takeovers: Vec<u64> =
            self.rows.iter().flat_map(|row| &row.takeover_us).copied().collect();
        takeovers.sort_unstable();
        let (p50, p99) = (quantile(&takeovers, 50), quantile(&takeovers, 99));
        format!(
            "seed {}: {} failovers in {} faults on {} pairs, {} operations ({} of them judged as one history), {} min {:02} s; takeover p50 {p50:.1} ms, \
             p99 {p99:.1} ms; {} takeovers unasked; {} primaries killed alone; {} MiB at most in a process, of {} that it may have; {} violations",
            self.seed,
            self.failovers(),
            self.sum(|row| row.rounds),
            self.pairs,
            self.operations,
            self.judged,
            time.as_secs() / 60,
            time.as_secs() % 60,
            self.unasked,
            self.died_alone,
            self.peak_memory_mib,
            self.memory_bound_mib,
            self.all_violations(),
        )
    }

    /// A table with a line for each fault.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{:<24} {:>6} {:>9} {:>8} {:>20} {:>14} {:>15} {:>10}\n",
            "fault",
            "times",
            "failovers",
            "refused",
            "takeover ms p50/p99",
            "longest gap ms",
            "protected after",
            "violations"
        );
        for row in self.rows.iter().filter(|row| row.rounds > 0) {
            let mut takeovers = row.takeover_us.clone();
            takeovers.sort_unstable();
            let takeover = if takeovers.is_empty() {
                "-".to_owned()
            } else {
                format!("{:.1}/{:.1}", quantile(&takeovers, 50), quantile(&takeovers, 99))
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:<24} {:>6} {:>9} {:>8} {takeover:>20} {:>14.0} {:>12} ms {:>10}",
                row.fault,
                row.rounds,
                row.failovers,
                row.refused,
                row.longest_gap_ms,
                row.protected_again_ms,
                row.violations
            );
        }
        text
    }
}

/// The quantile in milliseconds, of sorted values in microseconds.
fn quantile(sorted: &[u64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |us| *us as f64 / 1000.0)
}
