//! Worlds in which the guest, the machine or the standby ends.

use std::time::{Duration, Instant};

use ft_core::primary::Phase;

use super::{Fault, LOOK_EVERY, World};
use crate::faults::{Call, Happens, Trap};
use crate::scheduler::Host;
use crate::tally::{self, Kind};
use crate::{broken, faults, hosts, judge, kvm};

/// A machine must end within this time if it has nothing to wait for.
const SHORT_END: Duration = Duration::from_secs(2);
/// A machine must end within this time after a second signal, even if it has something to wait for.
const SECOND_END: Duration = Duration::from_millis(100);
/// A standby must end within this time after the order, including the wait for its arbiter's
/// answer.
const STANDBY_END: Duration = Duration::from_secs(4);

impl World {
    /// The guest of a machine that was ordered to end runs nowhere afterwards (P7), even if the
    /// machine is killed before it has ended.
    pub(super) fn end_in_order(&mut self) {
        self.wait_protected();
        self.pass(1..300);
        let mut waits = false;
        if self.random.bool() {
            self.set_reads(false);
            self.pass(1..2000);
            waits = true;
        }
        if self.random.bool() {
            faults::set_storage(Host::A, self.random.u64(..20_000_000));
            waits = true;
        }
        self.cable.set_micros(self.random.u64(..20_000));
        self.cause(Fault::EndPrimary);
        if self.random.u32(..4) == 0 {
            self.pass(700..4000);
            self.kill(Host::A);
        } else {
            self.see_the_end(waits);
        }
        self.pass(3000..3001);
        if judge::runs() > 1 {
            broken("P7: the guest of a machine that was ordered to end continues");
        }
        self.holds_nothing(Host::B);
    }

    /// A second signal ends the process at once; a signal within a second after the first does not
    /// count as the second. A side that takes over has everything that was released before, and a
    /// standby that knows of the end does not take over (P1, P7).
    pub(super) fn be_told_twice(&mut self) {
        self.wait_protected();
        self.pass(1..300);
        let may_be_untold = self.hinder_the_end();
        self.cause(Fault::EndPrimary);
        let (one_signal, begun) = (Duration::from_secs(1), Instant::now());
        if self.random.bool() {
            self.pass(1..950);
            self.signal();
            self.pass(99..100);
            if !hosts::is_there(Host::A) && !self.has_ended(Host::A) {
                broken("P7: a signal that comes twice within a second ends the process at once");
            }
        }
        self.pass_until(900, |world| world.has_ended(Host::A));
        std::thread::sleep((one_signal + LOOK_EVERY).saturating_sub(begun.elapsed()));
        self.pass(1..1000);
        let is_told_again = !self.has_ended(Host::A) && self.signal();
        if is_told_again {
            tally::saw(Kind::ToldTwice);
            self.pass_until(SECOND_END.as_millis() as u64, |_| !hosts::is_there(Host::A));
            if hosts::is_there(Host::A) && !self.has_ended(Host::A) {
                broken(&format!("P7: a second signal has not ended the process in {SECOND_END:?}"));
            }
        }
        self.heal();
        self.pass(3000..3001);
        if judge::runs() == 1 {
            return self.holds_nothing(Host::B);
        }
        if !may_be_untold {
            broken("P7: the guest of a machine that was ordered to end continues");
        }
        let before = judge::total();
        self.wait_for("P7: output", |world| judge::total() > before + 10 * world.burst);
    }

    /// Delays the machine's end; returns whether its standby may fail to learn of the end.
    fn hinder_the_end(&mut self) -> bool {
        match self.random.u32(..4) {
            0 => {
                faults::set_storage(Host::A, self.random.u64(100_000_000..4_000_000_000));
                true
            }
            1 => {
                self.cause(Fault::SilentLink);
                self.hold_one("devices");
                true
            }
            2 => {
                let thread =
                    ["devices", "vcpu0", "link", "sender", "ticker"][self.random.usize(..5)];
                self.hold_one(thread);
                true
            }
            _ => {
                // Released output is not written. The standby learns of the end before the primary
                // waits for that output.
                self.hold_one("console0");
                false
            }
        }
    }

    fn see_the_end(&mut self, waits: bool) {
        let limit = if waits { Duration::from_secs(9) } else { SHORT_END };
        let begun = Instant::now();
        self.pass_until(9_000, |world| world.has_ended(Host::A));
        if !self.has_ended(Host::A) || begun.elapsed() > limit {
            broken(&format!("P7: a machine that was ordered to end has not ended in {limit:?}"));
        }
        let freed = self.side(Host::A).freed;
        if !freed && !waits {
            broken("P7: a machine that has ended keeps its name");
        }
        if freed && let Err(why) = self.places.begin_again() {
            broken(&format!("P7: a name that was given back is not free: {why}"));
        }
    }

    /// A standby without a primary holds no machine and no lock of a disk (P9).
    pub(super) fn holds_nothing(&self, host: Host) {
        self.wait_for("P9: a standby without a primary that holds no machine", |_| {
            kvm::machines(host) == 0 || judge::last_host() == Some(host)
        });
    }

    /// The guest powers itself off, and its host may die at any moment of that (P7).
    pub(super) fn live_to_the_end(&mut self) {
        self.wait_protected();
        let mut protected = true;
        let mut in_peace = false;
        match self.random.u32(..6) {
            0..3 => {
                self.pass(1..400);
                protected = self.phase() == Some(Phase::Protected);
                self.cause_any();
            }
            3 => in_peace = true,
            _ => self.kill_around_the_request(),
        }
        self.pass(1..300);
        self.heal();
        let is_lost = self.killed == [Host::A] && !protected && judge::runs() < 2;
        if self.ends || is_lost {
            return;
        }
        self.wait_for("P7: the end of a guest that powers itself off", |world| {
            [Host::A, Host::B].into_iter().any(|host| {
                let ended = world.side(host).ended.clone();
                ended.is_some_and(|ended| ended == "PoweredOff" || ended.contains("powered off"))
            })
        });
        tally::saw(Kind::PowerOff);
        if in_peace {
            self.pass(2000..3000);
            if judge::runs() > 1 {
                broken("P7: a guest that has powered itself off continues");
            }
            self.holds_nothing(Host::B);
        }
    }

    /// A checkpoint begins before the guest's request and is sent; then the host dies. One thread
    /// releases the request and another performs it: either thread may be late.
    fn kill_around_the_request(&mut self) {
        let is_late = self.random.u32(..4) > 0;
        if is_late {
            let thread = ["devices", "power", "power"][self.random.usize(..3)];
            let most = if thread == "power" { 30 } else { 200 };
            let (behind, thread) = (Call::Any, Some(thread));
            let (left, blocks) = (self.random.u32(1..most), self.some_blocks());
            let happens = Happens::Hold(self.random.u64(1_000_000..60_000_000));
            faults::set_trap_at_request(Trap {
                host: Host::A,
                behind,
                thread,
                left,
                blocks,
                happens,
            });
        }
        self.wait_for("the guest's request", |_| judge::has_wanted_off());
        if is_late {
            self.pass_until(100, |_| faults::is_held());
            self.pass(1..20);
        }
        let behind = [Call::Send, Call::Kvm, Call::Output][self.random.usize(..3)];
        let (left, thread) = (self.random.u32(1..15), None);
        let blocks = self.some_blocks();
        let happens = Happens::Kill;
        faults::set_trap(Some(Trap { host: Host::A, behind, thread, left, blocks, happens }));
        self.pass(50..51);
    }

    /// An acknowledged checkpoint is complete, and a standby can take over from it. This includes
    /// the first one (P4).
    pub(super) fn die_at_the_first_checkpoint(&mut self) {
        self.cable.set_micros(self.random.u64(..3_000));
        if self.random.u32(..3) == 0 {
            self.refuse_the_first();
        }
        self.cable.kill_at_acknowledgement(self.random.u64(1..4));
        // The guest runs on and writes between two reads of its dirty log.
        let (left, blocks) = (self.random.u32(1..8), self.random.u32(..10));
        let happens = Happens::Hold(self.random.u64(..20_000_000));
        let (host, behind, thread) = (Host::A, Call::Kvm, Some("sender"));
        faults::set_trap(Some(Trap { host, behind, thread, left, blocks, happens }));
        self.wait_for("P7: the first checkpoints", |_| !hosts::is_there(Host::A));
        tally::saw(Kind::FirstCheckpoint);
        self.killed.push(Host::A);
        self.heal();
        self.conclude(true);
    }

    /// A checkpoint that KVM refuses is not acknowledged, and no takeover begins with it (P4). The
    /// guest continues (P7), and an operator may try again.
    fn refuse_the_first(&mut self) {
        faults::set_refuses(Host::B);
        self.wait_for("a checkpoint that is refused", |_| !faults::is_to_refuse());
        let before = judge::total();
        self.wait_for("P7: output without a standby", |world| {
            judge::total() > before + 10 * world.burst
        });
        self.protect();
    }

    /// A standby ends when ordered to. It does not stop the guest, and does not keep a term that it
    /// has won (P7).
    pub(super) fn lose_its_standby(&mut self) {
        let is_early = self.random.u32(..4) == 0;
        if is_early {
            // The standby holds no checkpoint, or no complete one.
            self.pass(1..40);
        } else {
            self.wait_protected();
            faults::set_storage(Host::B, self.random.u64(..100_000_000));
            self.pass(1..300);
        }
        let is_alone = is_early || self.random.bool();
        if is_alone {
            self.kill(Host::A);
            self.pass(0..600);
            if is_early {
                self.holds_nothing(Host::B);
            }
        } else {
            self.pass(0..200);
        }
        if judge::runs() > 1 {
            return;
        }
        let stop = self.side(Host::B).stop.clone().expect("a standby that runs");
        tally::saw(Kind::StandbyToldToEnd);
        stop.stop();
        self.pass_until(STANDBY_END.as_millis() as u64, |world| {
            world.has_ended(Host::B) || judge::runs() > 1
        });
        if judge::runs() > 1 {
            return;
        }
        if !self.has_ended(Host::B) {
            broken(&format!(
                "P7: a standby that was ordered to end has not ended in {STANDBY_END:?}"
            ));
        }
        if is_alone {
            let taken = self.places.begin_again().err();
            if let Some(why) = taken.filter(|why| why.contains("standby")) {
                broken(&format!("P7: a standby that has ended keeps the name: {why}"));
            }
            return;
        }
        faults::set_storage(Host::B, 0);
        let before = judge::total();
        self.wait_for("P7: output without a standby", |_| judge::total() > before + 100);
    }
}
