//! Runs a pair: injects a fault in each round while an outside client sends requests, and judges
//! the client's history.

mod arbiter;
mod audit;
pub mod config;
mod faults;
pub mod interactive;
mod members;
pub mod observer;
pub mod report;
mod round;
mod slow;
pub mod status;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::exercise;
use crate::findings::{Finding, Kind};
use crate::network::{Host, TestNetwork};
use crate::small_disk::SmallDisk;
use crate::switch::Switch;
use config::{Kill, PairConfig};
use members::{Launcher, Member};
use observer::Observer;
use report::RunReport;
use round::{DiedAlone, FENCED, Load};
use watch::Watch;

/// Limit of each wait on an ordinary machine. Syncs on a busy disk took up to 30 s.
const PATIENCE: Duration = Duration::from_secs(120);

/// Receives the progress of a run.
pub trait Progress {
    /// Shows the current step.
    fn step(&self, what: &str);
    /// Shows a line that stays.
    fn line(&self, line: &str);
}

/// The inputs of a run.
pub struct RunContext<'a> {
    /// The configuration of the pair and its faults.
    pub config: &'a PairConfig,
    /// An existing directory for all files. At first it contains only the disk's image
    /// (`disk.img`).
    pub dir: &'a Path,
    /// The switch that connects the observer and the hosts, whose ports are 0 and 1.
    pub switch: &'a Switch,
    /// The file system of the disk's image, if the harness can fill it.
    pub small_disk: Option<&'a SmallDisk>,
    /// Receives the progress.
    pub progress: &'a dyn Progress,
    /// Set to end the run early.
    pub stop: Arc<AtomicBool>,
}

/// Runs a pair to the end of its rounds. The report contains the violations; an error means that
/// the run could not be judged.
///
/// # Errors
/// The pair does not start, or makes no progress.
pub fn run(context: &RunContext<'_>, observer: &mut dyn Observer) -> Result<RunReport> {
    let config = context.config;
    config.check()?;
    let network = if config.loopback {
        TestNetwork::loopback("not wanted".to_owned())?
    } else {
        TestNetwork::new()?
    };
    context.progress.line(&format!("hosts: {}", network.describe()));
    let launcher = Launcher::new(config, &network, context.switch, context.dir)?;
    let watch = Watch::new(Arc::clone(&context.stop), config.scaled(PATIENCE));
    let mut pair = Pair::start(context, launcher, watch, observer)?;
    let mut report =
        RunReport { seed: config.seed, network: network.describe(), ..RunReport::default() };
    let mut dies = false;
    for number in 1..=config.rounds {
        if config.kill(number) == Kill::PowerOff {
            dies = true;
            break;
        }
        let round = match pair.round(number) {
            Err(error) if error.is::<DiedAlone>() => {
                context.progress.line(&format!("round {number}: {error:#}: this pair ends here"));
                report.died_alone = true;
                report.unasked = pair.unasked;
                return Ok(report);
            }
            round => round.with_context(|| format!("round {number}"))?,
        };
        context.progress.line(&round.to_string());
        let broken = !round.findings.is_empty();
        report.rounds.push(round);
        pair.judge_memory(&mut report);
        if broken {
            // End here: a broken history would break the judgement of later rounds.
            return Ok(report);
        }
    }
    pair.finish(&mut report, dies)?;
    Ok(report)
}

/// A protected pair between two rounds.
struct Pair<'a> {
    context: &'a RunContext<'a>,
    launcher: Launcher<'a>,
    watch: Watch,
    observer: &'a mut dyn Observer,
    random: fastrand::Rng,
    active: Member,
    passive: Member,
    /// Number of takeovers that happened without an injected fault.
    unasked: u32,
    /// Bytes of the disk's image that were allocated when the guest was last reset.
    written_at_reset: Option<u64>,
    /// The fault that is being injected.
    fault: Option<Kill>,
    /// The host that ran the guest when the fault began.
    before: Host,
}

impl<'a> Pair<'a> {
    fn start(
        context: &'a RunContext<'a>,
        mut launcher: Launcher<'a>,
        watch: Watch,
        observer: &'a mut dyn Observer,
    ) -> Result<Self> {
        let config = context.config;
        context.progress.step("starting standby and primary");
        let mut passive = launcher.start_standby(Host::B)?;
        watch.until("the standby listens", &mut [&mut passive], |members| {
            Ok(members[0].status().is_ok().then_some(()))
        })?;
        let active = launcher.start_primary(Host::A)?;
        let random = fastrand::Rng::with_seed(config.seed);
        let mut pair = Self {
            context,
            launcher,
            watch,
            observer,
            random,
            active,
            passive,
            unasked: 0,
            written_at_reset: None,
            fault: None,
            before: Host::A,
        };
        context.progress.step("the guest boots");
        pair.wait_answers(1, "the guest answers")?;
        context.progress.step("the guest's memory is copied to the standby");
        if !config.guest.boots_protected {
            let alone = pair.scaled_random(round::LEAD);
            pair.load(alone)?;
            pair.launcher.protect(&pair.active)?;
        }
        pair.wait_protected()?;
        Ok(pair)
    }

    fn wait_protected(&mut self) -> Result<()> {
        self.watch.until(
            "the guest is protected",
            &mut [&mut self.active, &mut self.passive],
            |members| {
                self.observer.keep_up()?;
                Ok(members[0].status()?.is_protected().then_some(()))
            },
        )
    }

    /// Waits for `more` further answers.
    fn wait_answers(&mut self, more: u64, what: &str) -> Result<()> {
        let wanted = self.observer.answered() + more;
        let observer = &*self.observer;
        self.watch.until(what, &mut [&mut self.active], |_| {
            Ok(observer.wait_answered(wanted, Duration::from_millis(50)).then_some(()))
        })
    }

    /// P9: no process uses more memory than its limit in docs/threads.md.
    fn judge_memory(&self, report: &mut RunReport) {
        let bound = self.context.config.memory_bound();
        let peak = self.launcher.peak().kib() / 1024;
        if peak > bound && report.peak_memory_mib <= bound {
            let what = format!("expected a process of at most {bound} MiB, found {peak} MiB");
            report.findings.push(Finding::new(Kind::Unbounded, what));
        }
        (report.peak_memory_mib, report.memory_bound_mib) = (peak, bound);
    }

    /// Powers the guest off, and checks the end of all processes. With `dies`, a side dies at the
    /// same time, and the other side must end as well.
    fn finish(mut self, report: &mut RunReport, dies: bool) -> Result<()> {
        self.context.progress.step("the guest powers itself off");
        let patience = self.watch.patience();
        let finished = self.observer.finish(patience);
        // If the answers stopped because the monitor ended, return the monitor's end as the error.
        let finished = finished.or_else(|silence| {
            self.watch.check_running(&mut [&mut self.active, &mut self.passive]).and(Err(silence))
        });
        report.findings.extend(finished?);
        report.operations = self.observer.answered();
        report.judged = self.observer.judged();
        report.findings.extend(unjudged(report.operations, report.judged));
        if dies {
            // Wait for protection: on a busy host the pair may have lost its standby, and then no
            // side would be left.
            self.wait_protected_wherever(Load::Over)?;
        }
        self.observer.power_off();
        if dies {
            self.power_off_as_a_side_dies()?;
            report.died_at_power_off = true;
        }
        if self.active.process.wait_exit(patience).and_then(|exit| exit.code()) == Some(FENCED) {
            // The primary was too busy for heartbeats in time: its standby took over and powered
            // off.
            std::mem::swap(&mut self.active, &mut self.passive);
            report.findings.extend(self.loser_ends());
            self.unasked += 1;
        }
        report.unasked = self.unasked;
        let exit = self.active.process.wait_exit(patience);
        let exit = exit.context("the guest was ordered to power off, but its monitor continues")?;
        if exit.code() != Some(0) {
            let what = format!("expected exit code 0 after power-off, found {exit}");
            report.findings.push(Finding::new(Kind::Behaviour, what));
        }
        let left = self.passive.process.wait_exit(patience);
        ensure!(left.is_some(), "the guest is off, but its standby continues");
        if self.context.config.device.is_some() {
            let takeovers = u64::from(self.context.config.rounds);
            let (seen, findings) = exercise::check(&self.launcher.device_output(), takeovers)?;
            report.device = Some(seen);
            report.findings.extend(findings);
        }
        if self.context.config.audit {
            self.context.progress.step("the audit logs are judged");
            let config = self.context.config;
            let (line, findings) = audit::judge(&config.kemari, self.launcher.audits())?;
            report.audit = Some(line);
            report.findings.extend(findings);
        }
        let disk = self.observer.check_disk()?;
        report.disk = disk.what;
        report.findings.extend(disk.findings);
        self.judge_memory(report);
        Ok(())
    }
}

/// A finding if the judge of histories judged nothing: it would then find nothing. About a third of
/// the operations reach it.
fn unjudged(operations: u64, judged: u64) -> Option<Finding> {
    const MANY: u64 = 1000;
    (operations > MANY && judged == 0).then(|| {
        let what = format!(
            "expected operations that are judged as one history, found none of {operations}"
        );
        Finding::new(Kind::Behaviour, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_that_nobody_judged_is_found() {
        assert_eq!(unjudged(5000, 1), None);
        assert_eq!(unjudged(10, 0), None);
        assert!(unjudged(5000, 0).is_some());
    }
}
