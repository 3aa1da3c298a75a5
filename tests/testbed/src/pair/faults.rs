//! Faults in the environment of a pair: the readers of its output, its network, its arbiter.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Pair;
use super::arbiter::Outage;
use super::round::{ASKING, Load, OUTAGE, Outcome, UNASKED, UNDER_WAY};
use super::slow::What;
use crate::findings::{Finding, Kind};
use crate::network::Host;

/// Time from the order to power off until a side dies, in microseconds.
const OFF: std::ops::Range<u64> = 0..20_000;
/// Number of lines that the guest prints while its console is not read.
const MARKS: u64 = 20;
/// Number of answers that must arrive in the meantime.
const ANSWERS: u64 = 50;
/// Time that a slow network takes for each frame, in microseconds.
const PACE: std::ops::Range<u64> = 200..20_000;
/// Duration of slowness, in milliseconds.
const SLOW_FOR: std::ops::Range<u64> = 300..1500;
/// Time that an intercepted call takes, in milliseconds.
const CALL: std::ops::Range<u64> = 20..1500;
/// One in this many slow resources recovers before the primary dies.
const RECOVERS: u32 = 4;

impl Pair<'_> {
    /// The consoles and standard errors are not read. The guest continues and prints, and its
    /// standby takes over although its messages are not read (P9).
    pub(super) fn unread(&mut self) -> Result<Outcome> {
        self.until_it_dies_protected(|pair| {
            let outcome = pair.nobody_reads();
            for member in [&pair.active, &pair.passive] {
                member.process.read_on();
            }
            outcome
        })
    }

    /// Injects a fault that ends with the primary's death. Repeats it if the pair lost its standby
    /// before: no side could continue then.
    pub(super) fn until_it_dies_protected(
        &mut self,
        mut play: impl FnMut(&mut Self) -> Result<Option<Outcome>>,
    ) -> Result<Outcome> {
        for _ in 0..UNASKED {
            if let Some(outcome) = play(self)? {
                return Ok(outcome);
            }
            self.wait_protected_wherever(Load::Goes)?;
        }
        bail!("expected a guest that stays protected, found it alone {UNASKED} times")
    }

    fn is_protected(&self) -> Result<bool> {
        Ok(self.active.status()?.is_protected())
    }

    fn nobody_reads(&mut self) -> Result<Option<Outcome>> {
        let patience = self.watch.patience();
        for member in [&self.active, &self.passive] {
            member.process.leave_unread(patience)?;
        }
        self.observer.print(MARKS);
        self.wait_answers(ANSWERS, "the guest answers while no process reads its console")?;
        if !self.is_protected()? {
            return Ok(None);
        }
        let outcome = self.kill_primary()?;
        self.wait_answers(
            1,
            "the guest answers from a host whose standard error no process reads",
        )?;
        Ok(Some(outcome))
    }

    /// A slow network delays only frames. The frames that it has not accepted when the primary dies
    /// are lost, as in any network.
    pub(super) fn slow_network(&mut self) -> Result<Outcome> {
        let port = self.active.host.index();
        let recovers = self.random.u32(..RECOVERS) == 0;
        self.until_it_dies_protected(|pair| {
            let outcome = pair.live_on_a_slow_network(port, recovers);
            pair.launcher.switch().heal(port);
            outcome
        })
    }

    fn live_on_a_slow_network(&mut self, port: usize, recovers: bool) -> Result<Option<Outcome>> {
        let pace = Duration::from_micros(self.random.u64(PACE));
        let time = self.scaled_random(SLOW_FOR);
        self.launcher.switch().slow(port, pace);
        self.live_through(time)?;
        if recovers {
            return Ok(Some(Outcome::default()));
        }
        if !self.is_protected()? {
            return Ok(None);
        }
        self.launcher.switch().lose(port);
        self.kill_primary().map(Some)
    }

    /// A resource of one side, or of both, is slow. No heartbeat waits for it (P7). If the primary
    /// dies in the meantime, the standby continues at once; with a slow arbiter, it may continue
    /// only when the arbiter is fast again.
    pub(super) fn slow(&mut self, what: What) -> Result<Outcome> {
        let recovers = self.random.u32(..RECOVERS) == 0;
        self.until_it_dies_protected(|pair| {
            let outcome = pair.live_with_something_slow(what, recovers);
            pair.launcher.slowness()?.end();
            outcome
        })
    }

    fn live_with_something_slow(&mut self, what: What, recovers: bool) -> Result<Option<Outcome>> {
        let each = Duration::from_millis(self.random.u64(CALL));
        let time = self.scaled_random(SLOW_FOR);
        let both = [self.active.host, self.passive.host];
        let hosts = [&both[..1], &both[1..], &both][self.random.usize(..3)];
        for host in hosts {
            self.launcher.slowness()?.begin(*host, what, each);
        }
        if what == What::Console {
            self.observer.print(MARKS);
        }
        self.live_through(time)?;
        if recovers {
            return Ok(Some(Outcome::default()));
        }
        if !self.active.status()?.has_standby() {
            return Ok(None);
        }
        self.active.process.kill();
        if what == What::Arbiter {
            // The sides ignore an answer that took too long: until the arbiter is fast again,
            // possibly neither side continues.
            let time = self.scaled_random(SLOW_FOR);
            self.watch.pass(time, &mut [&mut self.passive])?;
            self.launcher.slowness()?.end();
        }
        let takeover = self.wait_takeover()?;
        Ok(Some(self.moved(takeover)))
    }

    /// A reset loses the guest's memory and its outstanding requests, even if a side dies at the
    /// same time. The guest's disk keeps what the guest acknowledged before. The guest from before
    /// the reset must not come back (P1, P3).
    pub(super) fn reset(&mut self) -> Result<Outcome> {
        let patience = self.watch.patience();
        let is_idle = self.random.bool();
        let mut findings = if is_idle { self.observer.finish(patience)? } else { Vec::new() };
        let wait = Duration::from_micros(self.random.u64(OFF));
        let dies = self.random.u32(..4);
        // Wait for protection: if a side dies without a standby, no side is left.
        self.wait_protected_wherever(if is_idle { Load::Over } else { Load::Goes })?;
        self.written_at_reset = Some(std::fs::metadata(self.launcher.disk())?.blocks() * 512);
        self.observer.reset(is_idle)?;
        self.watch.pass(wait, &mut [])?;
        let mut outcome = match dies {
            0 => Outcome::default(),
            1 => self.kill_standby()?,
            _ => self.kill_primary()?,
        };
        let anew = self.observer.begin_anew(patience);
        // If no guest answers because the monitor ended, report the monitor's end.
        findings.extend(anew.or_else(|silence| {
            self.watch.check_running(&mut [&mut self.active]).and(Err(silence))
        })?);
        outcome.findings.extend(findings);
        Ok(outcome)
    }

    /// If the active side's tap is deleted, the guest continues there, and answers once the tap
    /// exists again. If the primary dies in the meantime, the guest continues on the other side's
    /// tap. A standby without a tap must not take over before its tap exists.
    pub(super) fn deleted_tap(&mut self) -> Result<Outcome> {
        if !self.launcher.has_taps() {
            kemari_not_tested::not_tested(
                "deleted-tap: this machine permits no hosts in namespaces",
            );
            return Ok(Outcome::default());
        }
        let (recovers, of_standby) = (self.random.u32(..RECOVERS) == 0, self.random.bool());
        self.until_it_dies_protected(|pair| {
            let host = if of_standby { pair.passive.host } else { pair.active.host };
            pair.launcher.network().delete_tap(host)?;
            let outcome = match (of_standby, recovers) {
                (true, _) => pair.standby_without_a_tap(host),
                (false, true) => pair.primary_without_a_tap(host),
                (false, false) => pair.dies_without_a_tap(),
            };
            pair.launcher.network().make_tap(host)?;
            outcome
        })
    }

    /// The guest's frames are lost, as with a pulled cable. This is no reason to replace the
    /// primary.
    fn primary_without_a_tap(&mut self, host: Host) -> Result<Option<Outcome>> {
        let time = self.scaled_random(SLOW_FOR);
        self.live_through(time)?;
        self.launcher.network().make_tap(host)?;
        self.wait_answers(1, "the guest answers over a tap that was made again")?;
        Ok(Some(Outcome::default()))
    }

    fn dies_without_a_tap(&mut self) -> Result<Option<Outcome>> {
        let time = self.scaled_random(SLOW_FOR);
        self.live_through(time)?;
        if !self.active.status()?.has_standby() {
            return Ok(None);
        }
        self.kill_primary().map(Some)
    }

    /// A standby that could not run the guest takes no term, and the primary reports this (P2, P9).
    fn standby_without_a_tap(&mut self, host: Host) -> Result<Option<Outcome>> {
        if !self.says_that_it_is_degraded()? {
            self.launcher.network().make_tap(host)?;
            return Ok(None);
        }
        self.wait_answers(ANSWERS, "the guest answers while its standby has no tap")?;
        if !self.active.status()?.is_degraded() {
            self.launcher.network().make_tap(host)?;
            return Ok(None);
        }
        self.active.process.kill();
        self.watch.until("the standby suspects", &mut [&mut self.passive], |members| {
            let status = members[0].status()?;
            Ok((status.state() == ASKING || status.runs_guest()).then_some(()))
        })?;
        self.watch.pass(self.context.config.scaled(OUTAGE), &mut [&mut self.passive])?;
        let early = self.passive.status()?.runs_guest();
        self.launcher.network().make_tap(host)?;
        let takeover = self.wait_takeover()?;
        let mut outcome = self.moved(takeover);
        if early {
            let what = "the standby has taken over without the tap that its guest is to have (P9)";
            outcome.findings.push(Finding::new(Kind::Behaviour, what));
        }
        Ok(Some(outcome))
    }

    /// A copy replaces one side's directory. The copy has all terms so far, but a term won in one
    /// directory does not appear in the other. A side that finds another directory than the one
    /// that it opened must not decide anything by it (P2).
    pub(super) fn two_arbiters(&mut self) -> Result<Outcome> {
        match self.random.u32(..3) {
            0 => self.arbiter_away(Outage::Copied(self.active.host)),
            1 => self.standby_without_arbiter(Outage::Copied(self.passive.host)),
            _ => self.two_arbiters_and_no_link(),
        }
    }

    /// The guest powers itself off while a side dies. Afterwards `active` is the side that lives.
    /// The guest is off, or is about to power off there; it must not start again, whatever the dead
    /// side had done of the power-off.
    pub(super) fn power_off_as_a_side_dies(&mut self) -> Result<()> {
        let wait = Duration::from_micros(self.random.u64(OFF));
        let standby = self.random.u32(..4) == 0;
        let dying = if standby { "standby" } else { "primary" };
        self.context.progress.step(&format!("the {dying} dies meanwhile"));
        self.watch.pass(wait, &mut [])?;
        if standby {
            self.passive.process.kill();
        } else {
            self.active.process.kill();
            std::mem::swap(&mut self.active, &mut self.passive);
        }
        Ok(())
    }

    /// The replication link is cut, and each side asks a different directory.
    fn two_arbiters_and_no_link(&mut self) -> Result<Outcome> {
        let term = self.active.status()?.number("term");
        let host = if self.random.bool() { Host::A } else { Host::B };
        let outage = Outage::Copied(host);
        self.launcher.fail_arbiter(outage)?;
        self.launcher.network().cut_replication(&[Host::A, Host::B])?;
        let decided = self.wait_decision(term)?;
        // Wait long enough for a wrong takeover by the other side to be seen.
        self.watch.pass(self.context.config.scaled(UNDER_WAY), &mut [])?;
        self.launcher.recover_arbiter(outage)?;
        let outcome = match decided {
            Some(takeover) => self.moved_from_the_living(takeover),
            None => {
                let findings = self.standby_gives_up()?;
                Outcome { refused: true, findings, ..Outcome::default() }
            }
        };
        self.launcher.network().heal_replication()?;
        Ok(outcome)
    }
}
