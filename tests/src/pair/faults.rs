//! Faults of what a pair talks to: whoever reads its output, its network, its arbiter.

use std::time::Duration;

use anyhow::{Result, bail};

use super::Pair;
use super::arbiter::Outage;
use super::round::{Outcome, UNASKED, UNDER_WAY};
use crate::bed::Host;

/// A side dies so many microseconds after the guest was told to power off.
const OFF: std::ops::Range<u64> = 0..20_000;
/// Marks that the guest prints while nobody reads them.
const MARKS: u64 = 20;
/// Answers that come meanwhile.
const ANSWERS: u64 = 50;
/// A slow network takes a frame in so many microseconds.
const PACE: std::ops::Range<u64> = 200..20_000;
/// How long it is slow, in milliseconds.
const SLOW_FOR: std::ops::Range<u64> = 300..1500;
/// Of so many slow networks, one recovers before the primary dies.
const RECOVERS: u32 = 4;

impl Pair<'_> {
    /// Whoever reads what the monitors write has stopped. The guest goes on, and prints; its standby takes over, and says so to
    /// nobody (P9).
    pub(super) fn unread(&mut self) -> Result<Outcome> {
        self.until_it_dies_protected(|pair| {
            let outcome = pair.nobody_reads();
            for member in [&pair.active, &pair.passive] {
                member.process.read_on();
            }
            outcome
        })
    }

    /// Plays what ends with the primary's death, again where a busy host has lost its standby before: nothing is left to go on then.
    fn until_it_dies_protected(
        &mut self,
        mut play: impl FnMut(&mut Self) -> Result<Option<Outcome>>,
    ) -> Result<Outcome> {
        for _ in 0..UNASKED {
            if let Some(outcome) = play(self)? {
                return Ok(outcome);
            }
            self.wait_protected()?;
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
        self.wait_answers(ANSWERS, "the guest answers while nobody reads its console")?;
        if !self.is_protected()? {
            return Ok(None);
        }
        let outcome = self.kill_primary()?;
        self.wait_answers(1, "the guest answers from a host whose standard error nobody reads")?;
        Ok(Some(outcome))
    }

    /// Frames wait for a network that takes them slowly, and nothing else does. Those that it has not taken when the primary dies
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

    /// The directory of one side is put in the place of a copy: it has all terms, and what is won in one is not seen in the other.
    /// Whoever finds another directory than it has opened may not decide anything by it (P2).
    pub(super) fn two_arbiters(&mut self) -> Result<Outcome> {
        if !self.launcher.arbiter_is_directory() {
            self.surroundings.progress.line("NOT TESTED: two-arbiters, the arbiter is an etcd");
            return Ok(Outcome::default());
        }
        match self.random.u32(..3) {
            0 => self.arbiter_away(Outage::Copied(self.active.host)),
            1 => self.standby_without_arbiter(Outage::Copied(self.passive.host)),
            _ => self.two_arbiters_and_no_link(),
        }
    }

    /// Afterwards `active` is the side that lives: the guest is off there, or will be. Whatever the dead side had done of it, the
    /// guest does not come up again.
    pub(super) fn power_off_as_a_side_dies(&mut self) -> Result<()> {
        let wait = Duration::from_micros(self.random.u64(OFF));
        let standby = self.random.u32(..4) == 0;
        let dying = if standby { "standby" } else { "primary" };
        self.surroundings.progress.step(&format!("the {dying} dies meanwhile"));
        self.watch.pass(wait, &mut [])?;
        if standby {
            self.passive.process.kill();
        } else {
            self.active.process.kill();
            std::mem::swap(&mut self.active, &mut self.passive);
        }
        Ok(())
    }

    /// Both sides ask, each where it thinks that its arbiter is.
    fn two_arbiters_and_no_link(&mut self) -> Result<Outcome> {
        let term = self.active.status()?.number("term");
        let host = if self.random.bool() { Host::A } else { Host::B };
        let outage = Outage::Copied(host);
        self.launcher.fail_arbiter(outage)?;
        self.launcher.bed().cut_replication(&[Host::A, Host::B])?;
        let decided = self.wait_decision(term)?;
        // The other side would act now, if it did.
        self.watch.pass(self.surroundings.config.scaled(UNDER_WAY), &mut [])?;
        self.launcher.recover_arbiter(outage)?;
        let outcome = match decided {
            Some(takeover) => self.moved_from_the_living(takeover),
            None => {
                let findings = self.standby_gives_up()?;
                Outcome { refused: true, findings, ..Outcome::default() }
            }
        };
        self.launcher.bed().heal_replication()?;
        Ok(outcome)
    }
}
