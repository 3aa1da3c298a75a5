//! The results of a run, as text and as JSON.

use std::fmt;

use serde::Serialize;

use super::config::Kill;
use super::status::Quantiles;
use crate::exercise::Exercise;
use crate::findings::{Finding, Kind};

/// The results of a round.
#[derive(Debug, Clone, Serialize)]
pub struct RoundReport {
    /// The number of the round, counted from 1.
    pub round: u32,
    /// The injected fault.
    pub kill: Kill,
    /// Time from the begin of the round to the fault, in milliseconds.
    pub killed_after_ms: u64,
    /// The host that ran the guest before the fault.
    pub before: &'static str,
    /// The host that ran the guest after the fault.
    pub after: &'static str,
    /// Number of operations answered before the fault.
    pub operations_before: u64,
    /// Number of operations answered after the fault.
    pub operations_after: u64,
    /// The client's longest time without an answer around the fault, in milliseconds.
    pub longest_gap_ms: f64,
    /// The client's latency before the fault, in microseconds.
    pub latency_us: Quantiles,
    /// Time from suspicion until the guest runs, measured by the standby, in microseconds.
    pub takeover_us: Option<u64>,
    /// Whether a living side lost the right to run: a fenced primary, or a standby that its primary
    /// gave up.
    pub refused: bool,
    /// Number of effects replayed at the takeover.
    pub replayed: u64,
    /// Number of answers beyond the number of requests that the client sent.
    pub duplicate_answers: u64,
    /// Number of checkpoints of the process that ran the guest before the fault.
    pub checkpoints: u64,
    /// Pause of the guest for a checkpoint, in microseconds.
    pub pause_us: Quantiles,
    /// Time from the staging of an effect to the commit of its checkpoint, in microseconds.
    pub commit_latency_us: Quantiles,
    /// Number of checkpoints whose hashes were compared.
    pub verified: u64,
    /// Time until the guest was protected again, in milliseconds.
    pub protected_again_ms: Option<u64>,
    /// The violations.
    pub findings: Vec<Finding>,
}

/// The results of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RunReport {
    /// The seed of the run.
    pub seed: u64,
    /// The kind of hosts.
    #[serde(rename = "bed")]
    pub network: String,
    /// The rounds that were judged.
    pub rounds: Vec<RoundReport>,
    /// Whether a side died while the guest powered itself off.
    pub died_at_power_off: bool,
    /// Number of takeovers that happened without an injected fault: a side was too busy for
    /// heartbeats in time.
    pub unasked: u32,
    /// Whether the guest died with its primary, which had lost its standby right before it was
    /// killed because a side was too busy.
    pub died_alone: bool,
    /// Number of acknowledged operations.
    pub operations: u64,
    /// Number of operations on shared objects that were judged as one history.
    pub judged: u64,
    /// The largest memory of one process of the pair, in MiB.
    pub peak_memory_mib: u64,
    /// The limit of that memory, in MiB.
    pub memory_bound_mib: u64,
    /// The output of the device under test, if the run had one.
    pub device: Option<Exercise>,
    /// The result of `kemari audit verify`, if the run had audit logs.
    pub audit: Option<String>,
    /// A description of the final check of the disk.
    pub disk: String,
    /// The violations outside of any round.
    pub findings: Vec<Finding>,
}

impl RunReport {
    /// Whether the run tested something and found no violation.
    pub fn held(&self) -> bool {
        let tried = !self.rounds.is_empty() || self.died_at_power_off || self.died_alone;
        tried && self.all_findings().next().is_none()
    }

    /// All violations, each with the number of its round, if any.
    pub fn all_findings(&self) -> impl Iterator<Item = (Option<u32>, &Finding)> {
        let of_rounds = self.rounds.iter().flat_map(|round| {
            round.findings.iter().map(move |finding| (Some(round.round), finding))
        });
        of_rounds.chain(self.findings.iter().map(|finding| (None, finding)))
    }

    fn count(&self, kind: Kind) -> usize {
        self.all_findings().filter(|(_, finding)| finding.kind == kind).count()
    }

    fn sum(&self, of: impl Fn(&RoundReport) -> u64) -> u64 {
        self.rounds.iter().map(of).sum()
    }

    fn typical(&self, of: impl Fn(&RoundReport) -> u64) -> u64 {
        let mut values: Vec<u64> = self.rounds.iter().map(of).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    }

    /// The median and the longest duration of takeovers, if there were any.
    fn takeovers(&self) -> String {
        let mut all: Vec<u64> = self.rounds.iter().filter_map(|round| round.takeover_us).collect();
        all.sort_unstable();
        let milliseconds = |us: u64| us as f64 / 1000.0;
        match (all.get(all.len() / 2), all.last()) {
            (Some(typical), Some(worst)) => format!(
                "{:.1} ms typically, {:.1} ms at worst",
                milliseconds(*typical),
                milliseconds(*worst)
            ),
            _ => "none".to_owned(),
        }
    }

    fn worst(&self, of: impl Fn(&RoundReport) -> u64) -> u64 {
        self.rounds.iter().map(of).max().unwrap_or_default()
    }
}

/// The header of the table of rounds.
pub const TABLE_HEAD: &str = "\
round  kill           host   ops before  ops after  gap ms  takeover ms  pause us p50/p99  commit us p50/p99  again ms";

impl fmt::Display for RoundReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let takeover = or_dash(self.takeover_us.map(|us| format!("{:.1}", us as f64 / 1000.0)));
        let again = or_dash(self.protected_again_ms.map(|ms| ms.to_string()));
        write!(
            f,
            "{:>5}  {:<13}  {}->{}   {:>10}  {:>9}  {:>6.0}  {:>11}  {:>7}/{:<8}  {:>8}/{:<8}  {:>8}",
            self.round,
            self.kill.name(),
            self.before,
            self.after,
            self.operations_before,
            self.operations_after,
            self.longest_gap_ms,
            takeover,
            self.pause_us.p50,
            self.pause_us.p99,
            self.commit_latency_us.p50,
            self.commit_latency_us.p99,
            again,
        )
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gap = self.rounds.iter().map(|round| round.longest_gap_ms).fold(0.0, f64::max);
        let before = self.sum(|round| round.operations_before);
        let after = self.sum(|round| round.operations_after);
        writeln!(
            f,
            "operations         {before} before the kills, {after} after, {} in all",
            self.operations
        )?;
        writeln!(f, "longest gap        {gap:.0} ms")?;
        writeln!(f, "lost               {}", self.count(Kind::Lost))?;
        writeln!(f, "rolled back        {}", self.count(Kind::RolledBack))?;
        writeln!(
            f,
            "duplicated         {} operations; {} answers repeated, {} effects performed again at a takeover",
            self.count(Kind::Duplicated),
            self.sum(|round| round.duplicate_answers),
            self.sum(|round| round.replayed),
        )?;
        writeln!(
            f,
            "checkpoints        {}, {} of them compared",
            self.sum(|round| round.checkpoints),
            self.sum(|round| round.verified)
        )?;
        writeln!(
            f,
            "pause              p50 {} us, p99 {} us (median of the rounds; worst {} us)",
            self.typical(|round| round.pause_us.p50),
            self.typical(|round| round.pause_us.p99),
            self.worst(|round| round.pause_us.max),
        )?;
        writeln!(
            f,
            "commit latency     p50 {} us, p99 {} us (median of the rounds; worst {} us)",
            self.typical(|round| round.commit_latency_us.p50),
            self.typical(|round| round.commit_latency_us.p99),
            self.worst(|round| round.commit_latency_us.max),
        )?;
        writeln!(f, "takeover           {}", self.takeovers())?;
        if self.unasked > 0 {
            writeln!(f, "unasked            {} takeovers: a host was too busy", self.unasked)?;
        }
        if self.died_alone {
            writeln!(
                f,
                "ended early        the primary that was killed last had just lost its standby"
            )?;
        }
        writeln!(
            f,
            "memory             {} MiB at most in one process, of {} that it may have",
            self.peak_memory_mib, self.memory_bound_mib
        )?;
        writeln!(
            f,
            "shared             {} operations on keys that all clients share, judged as one history",
            self.judged
        )?;
        writeln!(f, "disk               {}", self.disk)?;
        if let Some(Exercise { lines, repeated }) = self.device {
            writeln!(
                f,
                "device             {lines} lines, none missing; {repeated} steps back at takeovers"
            )?;
        }
        if let Some(audit) = &self.audit {
            writeln!(f, "audit              {audit}")?;
        }
        for (round, finding) in self.all_findings() {
            let place = round.map_or_else(String::new, |round| format!("round {round}: "));
            writeln!(f, "BROKEN             {place}{finding}")?;
        }
        let verdict = if self.held() { "every promise held" } else { "NOT every promise held" };
        write!(f, "{} rounds, seed {}: {verdict}", self.rounds.len(), self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takeovers_that_did_not_happen_have_no_time() {
        let mut report = RunReport::default();
        assert!(report.to_string().contains("takeover           none\n"), "{report}");
        for takeover_us in [None, Some(1500), Some(2500), Some(9000)] {
            report.rounds.push(RoundReport {
                round: 1,
                kill: Kill::Primary,
                killed_after_ms: 0,
                before: "a",
                after: "b",
                operations_before: 0,
                operations_after: 0,
                longest_gap_ms: 0.0,
                latency_us: Quantiles::default(),
                takeover_us,
                refused: false,
                replayed: 0,
                duplicate_answers: 0,
                checkpoints: 0,
                pause_us: Quantiles::default(),
                commit_latency_us: Quantiles::default(),
                verified: 0,
                protected_again_ms: None,
                findings: Vec::new(),
            });
        }
        let text = report.to_string();
        assert!(text.contains("takeover           2.5 ms typically, 9.0 ms at worst\n"), "{text}");
    }
}
