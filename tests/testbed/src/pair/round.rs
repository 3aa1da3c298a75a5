//! A round: load, a fault at a random time, more load, a judgement, and protection by a fresh
//! standby.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::Pair;
use super::arbiter::Outage;
use super::config::Kill;
use super::members::Member;
use super::report::RoundReport;
use super::slow::What;
use super::status::{Quantiles, Status};
use crate::capture::Frame;
use crate::client::Window;
use crate::findings::{Finding, Kind};
use crate::judge::Succession;
use crate::network::Host;

/// Exit code of a process that lost the right to run.
pub(super) const FENCED: i32 = 3;
/// Time from the begin of the round to the fault, in milliseconds.
pub(super) const LEAD: std::ops::Range<u64> = 100..900;
/// Maximum number of successive takeovers without an injected fault. A busy host does not explain
/// more.
pub(super) const UNASKED: u32 = 5;
/// Maximum number of attempts to start a fresh standby.
const STARTS: u32 = 5;
/// Exit code of a process that was refused at its start.
const REFUSED: i32 = 2;
/// Time that a stopped primary stays stopped after the takeover, in milliseconds.
const OVERSLEEP: std::ops::Range<u64> = 0..300;
/// Time that an outage of the arbiter lasts after its expected consequences.
pub(super) const OUTAGE: Duration = Duration::from_millis(1500);
/// Time in which frames arrive that left before effects were held.
pub(super) const UNDER_WAY: Duration = Duration::from_millis(300);
/// Number of bytes from the primary before a bit flips.
const CORRUPT_AFTER: std::ops::Range<u32> = 0..200_000;
/// Number of bytes from the standby before a bit flips. The standby sends little.
const CORRUPT_ACK_AFTER: std::ops::Range<u32> = 0..4000;
/// Distance of further flips in bytes, for links on which a single flip may have no effect.
const FLIP_EVERY: usize = 1009;
/// Rate of a slow link, in bytes per second.
const SLOW: std::ops::Range<u64> = 400_000..8_000_000;
/// Duration of its slowness, in milliseconds.
const SLOW_FOR: std::ops::Range<u64> = 300..1500;
/// Bytes of new blocks that a guest may write while the fault is prepared.
const WRITTEN_SOON: u64 = 1 << 20;
/// Time for which the disk is full, in milliseconds.
const FULL_FOR: std::ops::Range<u64> = 50..800;
/// The state of a standby that is asking the arbiter.
pub(super) const ASKING: &str = "doubting";
/// The state of a standby that has discarded its checkpoint and waits for a primary.
const DISCARDED: &str = "waiting";

/// The guest died with its primary, which ran alone: on a busy host it had lost its standby right
/// before it was killed, and had won a term of its own. No promise covers this case, and the pair
/// ends.
#[derive(Debug)]
pub(super) struct DiedAlone {
    reason: String,
}

impl fmt::Display for DiedAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the killed primary ran alone: {}", self.reason)
    }
}

impl std::error::Error for DiedAlone {}

/// Whether the clients still send requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    Goes,
    Over,
}

/// The result of a fault.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) moved: bool,
    /// Whether a living side lost the right to run.
    pub(super) refused: bool,
    pub(super) takeover: Option<Status>,
    pub(super) findings: Vec<Finding>,
}

impl Pair<'_> {
    /// Runs and judges round `number`. The pair is protected before and after it. The round starts
    /// again after a takeover without an injected fault.
    pub(super) fn round(&mut self, number: u32) -> Result<RoundReport> {
        for _ in 0..UNASKED {
            match self.try_round(number) {
                Ok(report) => return Ok(report),
                // The function that injects a fault also waits for its takeover. It failed here,
                // and may have left the fault in place.
                Err(error) if self.fault.is_some_and(|fault| !fault.leaves_nothing()) => {
                    return Err(error);
                }
                Err(error) => self.follow_unasked(error, Load::Goes)?,
            }
        }
        self.try_round(number)
    }

    /// As [`wait_protected`](Self::wait_protected), while no fault is active. Follows a takeover
    /// that happens without a fault.
    pub(super) fn wait_protected_wherever(&mut self, load: Load) -> Result<()> {
        let fault = self.fault;
        for _ in 0..UNASKED {
            match self.wait_protected() {
                Ok(()) => return Ok(()),
                Err(error) => self.follow_unasked(error, load)?,
            }
            self.fault = fault;
        }
        self.wait_protected()
    }

    fn try_round(&mut self, number: u32) -> Result<RoundReport> {
        let config = self.context.config;
        let kill = config.kill(number);
        let lead = config.load + self.scaled_random(LEAD);
        self.step(number, &format!("load, then kill {}", kill.name()));
        self.observer.next_window();
        self.launcher.switch().take_capture();
        self.load(lead)?;
        // Inject faults only into a protected pair: a busy host may have lost its standby and be
        // joining it again.
        self.wait_protected()?;
        let status = self.active.status()?;
        let before = self.observer.next_window();
        self.before = self.active.host;

        self.fault = Some(kill);
        let outcome = self.kill(kill)?;
        self.fault = None;
        self.step(number, "load continues");
        self.wait_answers(config.operations_after, "the guest answers after the kill")?;
        let after = self.observer.next_window();
        let mut report = self.describe(number, kill, lead, &status, (&before, &after));
        report.before = self.before.name();
        self.judge(self.before, &outcome, &before, &after, &status, &mut report)?;
        if report.findings.is_empty() {
            self.step(number, "a fresh standby");
            report.protected_again_ms = Some(self.protect_again()?.as_millis() as u64);
        }
        Ok(report)
    }

    /// Lets the load run for `lead`, and until an answer arrives. An answer may take seconds if
    /// each checkpoint is compared, or if the host is busy.
    pub(super) fn load(&mut self, lead: Duration) -> Result<()> {
        let answered = self.observer.answered();
        self.watch.pass(lead, &mut [&mut self.active, &mut self.passive])?;
        if self.observer.answered() > answered {
            return Ok(());
        }
        self.wait_answers(1, "the guest answers under protection")
    }

    fn step(&self, number: u32, what: &str) {
        self.context.progress.step(&format!("round {number}: {what}"));
    }

    pub(super) fn scaled_random(&mut self, milliseconds: std::ops::Range<u64>) -> Duration {
        let time = Duration::from_millis(self.random.u64(milliseconds));
        self.context.config.scaled(time)
    }

    /// Injects the fault. Afterwards `active` runs the guest, and `passive` is the lost side.
    fn kill(&mut self, kill: Kill) -> Result<Outcome> {
        match kill {
            Kill::Primary => self.kill_primary(),
            Kill::Standby => self.kill_standby(),
            Kill::BothLinks => self.cut_both_links(),
            Kill::PausePrimary => self.pause_primary(),
            Kill::PauseStandby => self.pause_standby(),
            Kill::Link => self.cut_link(&[Host::A, Host::B]),
            Kill::LinkToStandby => self.cut_link(&[self.active.host]),
            Kill::LinkToPrimary => self.cut_link(&[self.active.host.other()]),
            Kill::Corrupt => self.corrupt(),
            Kill::Throttle => self.throttle(),
            Kill::DiskFull => self.disk_full(),
            Kill::Arbiter => self.arbiter_away(Outage::Gone),
            Kill::ArbiterSilent => self.arbiter_away(Outage::Silent),
            Kill::ArbiterFromPrimary => self.arbiter_away(Outage::CutFrom(self.active.host)),
            Kill::PrimaryWithoutArbiter => {
                self.launcher.fail_arbiter(Outage::Gone)?;
                self.primary_dies_during(Outage::Gone)
            }
            Kill::StandbyWithoutArbiter => {
                self.standby_without_arbiter(Outage::CutFrom(self.passive.host))
            }
            Kill::PrimaryCutOff => self.primary_cut_off(),
            Kill::Unread => self.unread(),
            Kill::SlowNetwork => self.slow_network(),
            Kill::TwoArbiters => self.two_arbiters(),
            Kill::Reset => self.reset(),
            Kill::SlowDisk => self.slow(What::Disk),
            Kill::SlowConsole => self.slow(What::Console),
            Kill::SlowArbiter => self.slow(What::Arbiter),
            Kill::DeletedTap => self.deleted_tap(),
            Kill::PowerOff => bail!("a power-off ends the pair: it is not a round"),
        }
    }

    pub(super) fn kill_primary(&mut self) -> Result<Outcome> {
        self.active.process.kill();
        let takeover = self.wait_takeover()?;
        Ok(self.moved(takeover))
    }

    pub(super) fn kill_standby(&mut self) -> Result<Outcome> {
        self.passive.process.kill();
        self.watch.until("the primary continues alone", &mut [&mut self.active], |members| {
            Ok((members[0].status()?.state() == "alone").then_some(()))
        })?;
        Ok(Outcome::default())
    }

    fn pause_primary(&mut self) -> Result<Outcome> {
        self.until_it_dies_protected(|pair| {
            pair.active.process.signal(Signal::STOP);
            let Some(takeover) = pair.takeover_unless_refused()? else {
                pair.active.process.signal(Signal::CONT);
                return Ok(None);
            };
            pair.wait_answers(1, "the guest answers from its new host")?;
            let oversleep = pair.scaled_random(OVERSLEEP);
            pair.watch.pass(oversleep, &mut [&mut pair.passive])?;
            pair.active.process.signal(Signal::CONT);
            let mut outcome = pair.moved(takeover);
            pair.refuse_loser(&mut outcome);
            Ok(Some(outcome))
        })
    }

    /// Waits for a takeover. Returns `None` if the standby is refused: on a busy host the primary
    /// had won a term of its own before it was stopped, and only it may continue (P2).
    fn takeover_unless_refused(&mut self) -> Result<Option<Status>> {
        self.watch.until("the standby takes over", &mut [&mut self.passive], |members| {
            let status = members[0].status()?;
            Ok(match (status.has_taken_over(), status.state()) {
                (true, _) => Some(Some(status)),
                (false, DISCARDED) => Some(None),
                (false, _) => None,
            })
        })
    }

    /// The primary cannot ask the arbiter for a while: it performs no effect, and loses none. If
    /// the standby cannot ask either, neither side takes over. If the sides suspect each other in
    /// the meantime, the arbiter decides when it returns.
    pub(super) fn arbiter_away(&mut self, outage: Outage) -> Result<Outcome> {
        let term = self.active.status()?.number("term");
        let standby_asks = matches!(outage, Outage::CutFrom(_) | Outage::Copied(_));
        self.launcher.fail_arbiter(outage)?;
        self.watch.until(
            "the primary holds its effects, as it cannot ask the arbiter",
            &mut [],
            |_| {
                let replaced = standby_asks && is_running(&self.passive);
                // On a busy host, a primary that lost its standby asks the arbiter, and holds its
                // effects until the answer.
                let holds = |primary: Status| primary.holds_effects() || primary.state() == ASKING;
                let holds = self.active.status().is_ok_and(holds);
                Ok((holds || replaced).then_some(()))
            },
        )?;
        let mut findings = self.nothing_leaves()?;
        let replaced = is_running(&self.passive);
        if replaced && standby_asks {
            // The standby took over, so the frames are its own. The capture judges those of the old
            // host.
            findings.clear();
        } else if replaced || self.active.status()?.number("term") > term {
            let what = "a term was won while no side could reach the arbiter (P2)";
            findings.push(Finding::new(Kind::TwoActive, what));
        }
        let joined = self.active.status().is_ok_and(|primary| primary.has_standby());
        self.launcher.recover_arbiter(outage)?;
        if joined && self.goes_on_as_a_pair()? {
            return Ok(Outcome { findings, ..Outcome::default() });
        }
        let mut outcome = self.decided(term)?;
        outcome.findings.extend(findings);
        Ok(outcome)
    }

    /// Whether the sides are still a pair after the outage. On a busy host they may suspect each
    /// other.
    fn goes_on_as_a_pair(&self) -> Result<bool> {
        self.watch.until("the arbiter is back for both sides", &mut [], |_| {
            let Ok(primary) = self.active.status() else { return Ok(Some(false)) };
            if is_running(&self.passive) || !primary.has_standby() {
                return Ok(Some(false));
            }
            Ok((!primary.holds_effects()).then_some(true))
        })
    }

    /// Waits until one side continues and the other side learns that it lost.
    fn decided(&mut self, term: u64) -> Result<Outcome> {
        Ok(match self.wait_decision(term)? {
            Some(takeover) => self.moved_from_the_living(takeover),
            None => {
                let findings = self.standby_gives_up()?;
                Outcome { refused: true, findings, ..Outcome::default() }
            }
        })
    }

    /// Follows a takeover without an injected fault: a host was too busy for heartbeats in time.
    /// This breaks no promise, so the takeover is judged like any other, and counted. Returns any
    /// other `error`.
    fn follow_unasked(&mut self, error: anyhow::Error, load: Load) -> Result<()> {
        // The primary may learn that it is fenced before the guest runs on the other host.
        let ended = self.active.process.wait_exit(Duration::ZERO).and_then(|exit| exit.code());
        if ended != Some(FENCED) && !is_running(&self.passive) {
            return Err(error);
        }
        let (before, other) = (self.active.host.index(), self.passive.host.index());
        let takeover = self.wait_takeover()?;
        let mut outcome = self.moved_from_the_living(takeover);
        if load == Load::Goes {
            self.wait_answers(1, "the guest answers from a host that took over unasked")?;
        }
        let frames = self.launcher.switch().take_capture();
        outcome.findings.extend(Succession { before, other, moved: true }.check(&frames));
        if let Some(finding) = outcome.findings.first() {
            bail!("an unexpected takeover, without a fault for it: {finding}");
        }
        self.unasked += 1;
        self.fault = None;
        self.before = self.active.host;
        let line = format!("the guest moved to the other host, without a fault for it: {error:#}");
        self.context.progress.line(&line);
        self.protect_again().map(drop)
    }

    /// Checks that effects are held: once the frames that left earlier have arrived at the switch,
    /// no more arrive. The frames are counted at the switch, because a busy client may read an
    /// answer late.
    fn nothing_leaves(&mut self) -> Result<Vec<Finding>> {
        let config = self.context.config;
        self.watch.pass(config.scaled(UNDER_WAY), &mut [])?;
        let before = self.frames_of_hosts()?;
        self.watch.pass(config.scaled(OUTAGE), &mut [])?;
        let frames = self.frames_of_hosts()? - before;
        if frames == 0 {
            return Ok(Vec::new());
        }
        let what =
            format!("{frames} frames came while neither side had an answer of the arbiter (P2)");
        Ok(vec![Finding::new(Kind::TwoActive, what)])
    }

    /// The exact number of frames from the hosts in this round.
    fn frames_of_hosts(&self) -> Result<usize> {
        let (switch, hosts) = (self.launcher.switch(), [Host::A, Host::B].map(Host::index));
        self.watch.until("the switch takes what was sent", &mut [], |_| {
            Ok(hosts.iter().all(|port| switch.is_settled(*port)).then_some(()))
        })?;
        let of_hosts =
            |frames: &[Frame]| frames.iter().filter(|frame| hosts.contains(&frame.port)).count();
        Ok(switch.with_capture(of_hosts))
    }

    /// The standby suspects the primary, rightly, and must not continue before the arbiter permits
    /// it.
    fn primary_dies_during(&mut self, outage: Outage) -> Result<Outcome> {
        self.active.process.kill();
        self.watch.until("the standby asks the arbiter", &mut [&mut self.passive], |members| {
            let status = members[0].status()?;
            Ok((status.state() == ASKING || status.runs_guest()).then_some(()))
        })?;
        let config = self.context.config;
        self.watch.pass(config.scaled(OUTAGE), &mut [&mut self.passive])?;
        let early = self.passive.status()?.runs_guest();
        self.launcher.recover_arbiter(outage)?;
        let takeover = self.wait_takeover()?;
        let outcome = self.moved(takeover);
        if early {
            // A standby that ran the guest early may have won its term just before the outage. If
            // it continued without asking, the arbiter does not know its term, and no answer leaves
            // (P2).
            self.wait_answers(1, "the guest answers in a term that the arbiter knows")?;
        }
        Ok(outcome)
    }

    /// A standby that could not take over stays a standby. The guest continues, and the primary
    /// reports that it is not protected.
    pub(super) fn standby_without_arbiter(&mut self, outage: Outage) -> Result<Outcome> {
        self.launcher.fail_arbiter(outage)?;
        while !self.says_that_it_is_degraded()? {
            // On a busy host the primary has just lost its standby, which can join again only once
            // it reaches the arbiter. End the outage, and repeat.
            self.launcher.recover_arbiter(outage)?;
            self.wait_protected_wherever(Load::Goes)?;
            self.launcher.fail_arbiter(outage)?;
        }
        self.wait_answers(1, "the guest answers while its standby does not reach the arbiter")?;
        self.primary_dies_during(outage)
    }

    /// Waits until the primary reports that it is degraded (`true`), or runs alone (`false`).
    pub(super) fn says_that_it_is_degraded(&self) -> Result<bool> {
        let what = "the primary says that its standby could not take over, or that it has none";
        self.watch.until(what, &mut [], |_| {
            let status = self.active.status()?;
            Ok(match status.state() {
                "degraded" => Some(true),
                "alone" => Some(false),
                _ => None,
            })
        })
    }

    /// The replaced primary lives and its clients reach it. Only its own checks keep it from
    /// answering them (P2).
    fn primary_cut_off(&mut self) -> Result<Outcome> {
        let outage = Outage::CutFrom(self.active.host);
        self.until_it_dies_protected(|pair| {
            pair.launcher.fail_arbiter(outage)?;
            pair.launcher.network().cut_replication(&[Host::A, Host::B])?;
            let takeover = pair.takeover_unless_refused()?;
            let mut outcome = takeover.map(|takeover| pair.moved(takeover));
            if outcome.is_some() {
                pair.wait_answers(1, "the guest answers from its new host")?;
                let scaled = pair.context.config.scaled(UNDER_WAY);
                let time = scaled + pair.scaled_random(OVERSLEEP);
                pair.watch.pass(time, &mut [&mut pair.active])?;
            }
            pair.launcher.network().heal_replication()?;
            pair.launcher.recover_arbiter(outage)?;
            if let Some(outcome) = &mut outcome {
                pair.refuse_loser(outcome);
            }
            Ok(outcome)
        })
    }

    fn cut_both_links(&mut self) -> Result<Outcome> {
        let cable = self.active.host.index();
        self.launcher.switch().cut(cable);
        let outcome = self.cut_link(&[Host::A, Host::B]);
        self.launcher.switch().heal(cable);
        outcome
    }

    /// Drops all packets from `senders` on the replication link. One side continues, and the other
    /// learns that it lost while the link is cut.
    fn cut_link(&mut self, senders: &[Host]) -> Result<Outcome> {
        let term = self.active.status()?.number("term");
        self.launcher.network().cut_replication(senders)?;
        let outcome = self.decided(term)?;
        self.launcher.network().heal_replication()?;
        Ok(outcome)
    }

    pub(super) fn moved_from_the_living(&mut self, takeover: Status) -> Outcome {
        let mut outcome = self.moved(takeover);
        self.refuse_loser(&mut outcome);
        outcome
    }

    /// A bit flips in the bytes of one side. The session ends, and one side continues.
    fn corrupt(&mut self) -> Result<Outcome> {
        let term = self.active.status()?.number("term");
        let sender = if self.random.bool() { Host::A } else { Host::B };
        let range = if sender == self.active.host { CORRUPT_AFTER } else { CORRUPT_ACK_AFTER };
        let after = self.random.u32(range);
        // On a plain link each flipped bit must be detected. With TLS a single flip may have no
        // effect: readers ignore one byte in the header of each record (RFC 8446, section 5.1).
        let every = self.context.config.tls.then_some(FLIP_EVERY);
        self.launcher.network().corrupt_replication(sender, after, every)?;
        let decided = self.wait_decision(term);
        self.launcher.network().stop_corrupting()?;
        Ok(match decided? {
            Some(takeover) => self.moved_from_the_living(takeover),
            // The link is correct again: the primary may already have a standby.
            None => Outcome::default(),
        })
    }

    /// The guest continues at any rate of the link. The test does not require that the pair stays
    /// protected.
    fn throttle(&mut self) -> Result<Outcome> {
        let term = self.active.status()?.number("term");
        let rate = self.random.u64(SLOW);
        let time = self.scaled_random(SLOW_FOR);
        self.launcher.network().throttle_replication(Some(rate))?;
        let slow = self.live_through(time).with_context(|| {
            let states = [&self.active, &self.passive].map(|member| {
                member
                    .status()
                    .map_or_else(|e| format!("{e:#}"), |status| status.json().to_string())
            });
            format!("at {rate} bytes a second: primary {}, standby {}", states[0], states[1])
        });
        self.launcher.network().throttle_replication(None)?;
        slow?;
        let decided = self.watch.until("the pair has settled", &mut [], |_| {
            if let Some(standby) = self.passive.status().ok().filter(Status::has_taken_over) {
                return Ok(Some(Some(standby)));
            }
            let primary = self.active.status().ok();
            Ok(primary.filter(|status| is_settled(status, term)).map(|_| None))
        })?;
        Ok(match decided {
            Some(takeover) => self.moved_from_the_living(takeover),
            None => Outcome::default(),
        })
    }

    /// Waits for `time`, and then for progress: an answer or an acknowledgement. A guest that
    /// dirties pages faster than a slow link carries them gets no answers for a long time, because
    /// an answer waits for its checkpoint and the earlier checkpoints in flight.
    pub(super) fn live_through(&mut self, time: Duration) -> Result<()> {
        self.watch.pass(time, &mut [])?;
        let wanted = self.observer.answered() + 1;
        let acknowledged =
            |member: &Member| member.status().map_or(0, |status| status.number("acknowledged"));
        let before = acknowledged(&self.active);
        self.watch.until(
            "answers or acknowledgements come while something is slow",
            &mut [],
            |_| {
                let answered = self.observer.wait_answered(wanted, Duration::from_millis(50));
                Ok((answered || acknowledged(&self.active) > before).then_some(()))
            },
        )
    }

    /// The guest gets errors for its writes, and keeps each write that succeeded. The pair stays
    /// protected. A busy host may lose its standby at that time, but not repeatedly.
    fn disk_full(&mut self) -> Result<Outcome> {
        let mut state = String::new();
        for _ in 0..UNASKED {
            if !self.writes_to_new_blocks()? {
                let line =
                    "NOT TESTED: disk-full: the guest overwrites old data, which needs no space";
                self.context.progress.line(line);
                return Ok(Outcome::default());
            }
            let status = self.fill_disk()?;
            if status.is_protected() {
                return Ok(Outcome::default());
            }
            state = status.state().to_owned();
            self.wait_protected_wherever(Load::Goes)?;
        }
        let what = format!(
            "a full disk must affect only the guest: expected it to stay protected, found {state} {UNASKED} times"
        );
        let findings = vec![Finding::new(Kind::Behaviour, what)];
        Ok(Outcome { findings, ..Outcome::default() })
    }

    /// Whether the guest's next writes need new blocks: a full file system accepts writes to
    /// allocated blocks. The guest writes its disk from the first block to the last, and begins
    /// again after a reset.
    fn writes_to_new_blocks(&self) -> Result<bool> {
        let image = std::fs::metadata(self.launcher.disk())?;
        let written = image.blocks() * 512;
        let is_beyond = self.written_at_reset.is_none_or(|before| written >= before + WRITTEN_SOON);
        Ok(is_beyond && written + WRITTEN_SOON < image.len())
    }

    /// Fills the disk for a while, and returns the primary's status at the end.
    fn fill_disk(&mut self) -> Result<Status> {
        let disk = self.context.small_disk;
        let disk = disk.context("--kill disk-full: expected a disk of limited size, found none")?;
        let time = self.scaled_random(FULL_FOR);
        let before = self.observer.disk_errors();
        self.observer.disk_fails(true);
        disk.fill()?;
        let (observer, members) = (&*self.observer, &mut [&mut self.active, &mut self.passive]);
        let told =
            self.watch.until("the guest gets the error that its disk is full", members, |_| {
                Ok((observer.disk_errors() > before).then_some(()))
            });
        let passed = told.and_then(|()| self.watch.pass(time, members));
        disk.empty()?;
        self.observer.disk_fails(false);
        passed?;
        self.active.status()
    }

    /// The primary gives up its stopped standby. The standby learns this when it is resumed, and
    /// must not run the guest.
    fn pause_standby(&mut self) -> Result<Outcome> {
        let term = self.active.status()?.number("term");
        self.passive.process.signal(Signal::STOP);
        self.watch.until("the primary continues alone", &mut [&mut self.active], |members| {
            Ok((members[0].status()?.number("term") > term).then_some(()))
        })?;
        let oversleep = self.scaled_random(OVERSLEEP);
        self.watch.pass(oversleep, &mut [&mut self.active])?;
        self.passive.process.signal(Signal::CONT);
        let findings = self.standby_gives_up()?;
        Ok(Outcome { refused: true, findings, ..Outcome::default() })
    }

    /// The sides suspect each other. Waits until one of them continues, and returns the standby's
    /// status if it is the standby.
    pub(super) fn wait_decision(&mut self, term: u64) -> Result<Option<Status>> {
        self.watch.until("one side continues", &mut [], |_| {
            let standby = self.passive.status().ok().filter(Status::has_taken_over);
            if let Some(standby) = standby {
                return Ok(Some(Some(standby)));
            }
            let primary = self.active.status().ok();
            Ok(primary.is_some_and(|primary| primary.number("term") > term).then_some(None))
        })
    }

    /// Waits until the standby has taken over.
    ///
    /// # Errors
    /// [`DiedAlone`], or another reason for which the standby does not take over.
    pub(super) fn wait_takeover(&mut self) -> Result<Status> {
        let primary = format!("(pid {}, ", self.active.process.pid());
        self.watch.until("the standby takes over", &mut [&mut self.passive], |members| {
            let status = members[0].status()?;
            let reason = status.json()["reason"].as_str().unwrap_or_default().to_owned();
            if status.state() == DISCARDED && reason.contains(&primary) {
                return Err(DiedAlone { reason }.into());
            }
            Ok(Some(status).filter(Status::has_taken_over))
        })
    }

    pub(super) fn moved(&mut self, takeover: Status) -> Outcome {
        std::mem::swap(&mut self.active, &mut self.passive);
        Outcome { moved: true, takeover: Some(takeover), ..Outcome::default() }
    }

    fn refuse_loser(&mut self, outcome: &mut Outcome) {
        outcome.refused = true;
        outcome.findings.extend(self.loser_ends());
    }

    /// The old primary has lost the right to run. It must detect this and end.
    pub(super) fn loser_ends(&mut self) -> Option<Finding> {
        let loser = &mut self.passive.process;
        let exit = loser.wait_exit(self.watch.patience());
        let code = exit.and_then(|exit| exit.code());
        // The exit is not enough: wait until its last lines have been read from the pipe.
        let said = exit.is_some() && loser.wait_line("fenced", self.watch.patience()).is_some();
        if (code, said) == (Some(FENCED), true) {
            return None;
        }
        let ended = exit.map_or_else(|| "it continues".to_owned(), |exit| exit.to_string());
        let last = loser.lines().pop().unwrap_or_default();
        let what = format!(
            "the primary that lost the right to run must exit with code {FENCED} and say `fenced`; found: {ended}, \
             last words: {last}"
        );
        Some(Finding::new(Kind::TwoActive, what))
    }

    /// The standby was refused the right to run and must not run the guest. If the link works
    /// again, it may already be the primary's standby again.
    pub(super) fn standby_gives_up(&mut self) -> Result<Vec<Finding>> {
        let passive = &mut self.passive;
        self.watch.until("the refused standby stops or waits", &mut [], |_| {
            if passive.process.exited().is_some() {
                return Ok(Some(Vec::new()));
            }
            let status = passive.status()?;
            let gave_up = !status.runs_guest() && status.state() != ASKING;
            Ok(gave_up.then(Vec::new))
        })
    }

    fn describe(
        &self,
        round: u32,
        kill: Kill,
        lead: Duration,
        status: &Status,
        (before, after): (&Window, &Window),
    ) -> RoundReport {
        let longest = before.longest_gap.max(after.longest_gap);
        RoundReport {
            round,
            kill,
            killed_after_ms: lead.as_millis() as u64,
            before: "",
            after: self.active.host.name(),
            operations_before: before.operations,
            operations_after: after.operations,
            longest_gap_ms: longest.as_secs_f64() * 1000.0,
            latency_us: quantiles(before),
            takeover_us: None,
            refused: false,
            replayed: 0,
            duplicate_answers: before.surplus_answers + after.surplus_answers,
            checkpoints: status.number("checkpoints"),
            pause_us: status.quantiles("pause_us"),
            commit_latency_us: status.quantiles("commit_latency_us"),
            verified: status.verified().0,
            protected_again_ms: None,
            findings: Vec::new(),
        }
    }

    fn judge(
        &mut self,
        before: Host,
        outcome: &Outcome,
        early: &Window,
        late: &Window,
        status: &Status,
        report: &mut RoundReport,
    ) -> Result<()> {
        if let Some(takeover) = &outcome.takeover {
            report.takeover_us = takeover.takeover_us();
            report.replayed = takeover.number("replayed");
        }
        report.refused = outcome.refused;
        report.findings.extend(outcome.findings.iter().cloned());
        report.findings.extend(self.observer.check(self.watch.patience())?);
        let succession = Succession {
            before: before.index(),
            other: before.other().index(),
            moved: outcome.moved,
        };
        report.findings.extend(succession.check(&self.launcher.switch().take_capture()));
        let surplus = early.surplus_answers + if outcome.moved { 0 } else { late.surplus_answers };
        if surplus > 0 {
            let what = format!(
                "expected at most one answer for each request without a takeover, found {surplus} more"
            );
            report.findings.push(Finding::new(Kind::Duplicated, what));
        }
        let (compared, different) = status.verified();
        if different > 0 {
            let what = format!("{different} of {compared} checkpoints differ between both sides");
            report.findings.push(Finding::new(Kind::Corrupt, what));
        }
        Ok(())
    }

    /// Whether a side ended at its start because its arbiter did not answer in time.
    fn was_not_answered(&self, member: &mut Member) -> bool {
        // Wait for its last line, which may still be in the pipe.
        member.process.exited().is_some_and(|ended| ended.code() == Some(REFUSED))
            && member
                .process
                .wait_line("expected an answer within", self.watch.patience())
                .is_some()
    }

    /// Starts a standby and waits until it listens. On a busy machine its arbiter may not answer in
    /// time; it is then started again, as by a service manager.
    fn fresh_standby(&mut self, host: Host) -> Result<Member> {
        let mut left = STARTS;
        loop {
            left -= 1;
            let mut fresh = self.launcher.start_standby(host)?;
            let listens =
                self.watch.until("the fresh standby listens", &mut [&mut fresh], |members| {
                    Ok(members[0].status().is_ok().then_some(()))
                });
            match listens {
                Ok(()) => return Ok(fresh),
                Err(error) if left == 0 || !self.was_not_answered(&mut fresh) => {
                    return Err(error);
                }
                Err(_) => self.launcher.forget_last(),
            }
        }
    }

    /// Starts a fresh standby in place of the lost side, and returns the time until the guest was
    /// protected.
    fn protect_again(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let host = self.active.host.other();
        self.passive.process.kill();
        self.passive = self.fresh_standby(host)?;
        let launcher = &self.launcher;
        self.watch.until(
            "the guest takes a fresh standby",
            &mut [&mut self.active],
            |members| {
                self.observer.keep_up()?;
                // The primary refuses this command while it asks the arbiter about its former
                // standby. It also refuses if it has already joined the fresh standby, whose
                // address it knew from its start.
                let told = launcher.protect(members[0]);
                let joined = members[0].status()?.has_standby();
                if joined { Ok(Some(())) } else { told.map(Some) }
            },
        )?;
        self.wait_protected().context("protection by a fresh standby")?;
        Ok(begin.elapsed())
    }
}

fn quantiles(window: &Window) -> Quantiles {
    Quantiles {
        p50: window.latency.value_at_quantile(0.5),
        p99: window.latency.value_at_quantile(0.99),
        max: window.latency.max(),
    }
}

/// Whether the guest is protected as before, or its primary continues alone.
fn is_settled(primary: &Status, term: u64) -> bool {
    primary.is_protected() || primary.number("term") > term
}

fn is_running(member: &Member) -> bool {
    member.status().is_ok_and(|status| status.runs_guest())
}
