//! Worlds with few faults, or none: the product must meet shorter bounds here.

use std::time::{Duration, Instant};

use ft_core::primary::Phase;

use super::{Fault, LOOK_EVERY, World, rest};
use crate::cable::Cable;
use crate::faults::{Call, Happens, Trap};
use crate::scheduler::Host;
use crate::tally::{self, Kind};
use crate::{broken, faults, judge, trace};

/// Without faults, a guest must be protected within this time.
const SOON_PROTECTED: Duration = Duration::from_secs(2);
/// Without faults, output must leave within this time.
const SOON_OUT: Duration = Duration::from_millis(50);
/// If only the host dies, the guest must run elsewhere within this time.
const SOON_TAKEN_OVER: Duration = Duration::from_millis(1500);
/// Milliseconds that a thread may hang before the guest must run elsewhere: the stall timeout, plus
/// the time to detect the stall.
const LONGEST_HANG: u64 = 6_500;

/// The longest wait of output for a standby that does not answer: until the silence is noticed and
/// the arbiter has answered.
const LONGEST_SILENCE: Duration = Duration::from_secs(1);

impl World {
    /// Without faults, neither side suspects the other, and every bound is met (P7).
    pub(super) fn live_in_peace(&mut self) {
        let begun = Instant::now();
        self.wait_protected();
        if begun.elapsed() > SOON_PROTECTED {
            broken(&format!("P7: not protected within {SOON_PROTECTED:?}, and nothing fails"));
        }
        // Output that was held before the first checkpoint has left by then.
        self.pass(50..100);
        let sessions = self.cable.joined();
        for _ in 0..self.random.usize(1..4) {
            self.stay_protected(sessions);
            match self.random.u32(..4) {
                0 => self.cause(Fault::Stranger),
                1 => self.cause(Fault::ProtectAgain),
                _ => {}
            }
        }
        self.stay_protected(sessions);
        self.come_to_rest();
        self.kill(Host::A);
        let begun = Instant::now();
        self.wait_for("P7: a takeover", |_| judge::runs() > 1);
        if begun.elapsed() > SOON_TAKEN_OVER {
            broken(&format!("P7: no takeover within {SOON_TAKEN_OVER:?}, and nothing else fails"));
        }
    }

    fn stay_protected(&mut self, sessions: u64) {
        let millis = self.random.u64(50..400);
        let (begun, mut longest) = (Instant::now(), Duration::ZERO);
        while begun.elapsed() < Duration::from_millis(millis) {
            if self.phase() != Some(Phase::Protected) {
                broken("P7: protected no more, and nothing fails");
            }
            if self.cable.joined() != sessions {
                broken("P7: another session has begun, and nothing fails");
            }
            let wait = Duration::from_nanos(judge::longest_wait());
            longest = longest.max(wait);
            if wait > SOON_OUT {
                broken(&format!("P7: output has waited for {wait:?}, and nothing fails"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        trace(&format!("output has waited for {longest:?} at most"));
    }

    /// The operator names one standby and then another: the second one protects the guest (P7, P9).
    pub(super) fn choose_another(&mut self) {
        let is_late = self.random.bool();
        let lay = |world: &Self| Cable::lay(&world.places.near(Host::C), world.places.far(Host::C));
        let mut other = None;
        if !is_late {
            other = Some(lay(self));
            self.begin_standby(Host::C);
        }
        self.wait_for("an engine", |world| world.with_engine(Host::A, |_| ()).is_some());
        self.pass(1..50);
        // Hold the thread anywhere, or between its last check that it is still wanted and its
        // session.
        let (is_held, at_the_door) = (self.random.bool(), self.random.bool());
        if is_held {
            self.hold_the_link(at_the_door);
        }
        if self.random.bool() && !(is_held && at_the_door) {
            faults::set_storage(Host::A, self.random.u64(..50_000_000));
        }
        self.protect();
        match (is_held, at_the_door) {
            (true, false) => self.pass_until(40, |_| faults::is_held()),
            (true, true) => self.pass_until(500, |_| faults::is_held()),
            (false, _) => self.pass(0..40),
        }
        if rest::is_stuck() || self.phase() != Some(Phase::Alone) {
            // The guest has a standby already, or a held thread blocks the operator's command.
            return;
        }
        self.standby = Host::C;
        tally::saw(Kind::OtherStandby);
        if is_held && at_the_door {
            // The next thread that connects is slow.
            faults::set_storage(Host::A, self.random.u64(5_000_000..50_000_000));
        }
        self.protect();
        if is_held && (at_the_door || self.random.bool()) {
            self.pass(0..30);
            faults::release();
        }
        if is_late {
            // The named standby does not listen yet.
            self.pass(0..300);
            other = Some(lay(self));
            self.begin_standby(Host::C);
        }
        self.cable = other.expect("laid by now");
        self.wait_protected();
        self.pass(100..300);
        self.heal();
        self.wait_protected();
        self.come_to_rest();
        self.kill(Host::A);
        self.wait_for("P7: a takeover", |_| judge::runs() > 1);
        if judge::last_host() != Some(Host::C) {
            broken("P9: protected by a standby that the operator has replaced");
        }
    }

    /// Holds the next thread that connects: at any call, or at the start of its sender.
    fn hold_the_link(&mut self, at_the_door: bool) {
        let (behind, left, blocks) = match at_the_door {
            // The thread has just started its sender.
            true => (Call::Start, 1, self.random.u32(..10)),
            false => (Call::Any, self.random.u32(1..100), self.some_blocks()),
        };
        let happens = Happens::Hold(self.random.u64(50_000_000..2_000_000_000));
        let (host, thread) = (Host::A, Some("link"));
        faults::set_trap(Some(Trap { host, behind, thread, left, blocks, happens }));
    }

    /// If any thread hangs, at any place, the guest continues on this host or on the other (P7).
    pub(super) fn hang(&mut self) {
        self.wait_protected();
        self.pass(1..200);
        if self.random.u32(..4) == 0 {
            return self.hang_at_the_standby();
        }
        if self.random.bool() {
            self.hold_with_the_lock();
        } else {
            let thread = ["devices", "link", "sender", "ticker", "vcpu0"][self.random.usize(..5)];
            self.hold_one(thread);
        }
        if faults::is_held() {
            self.pass(LONGEST_HANG..LONGEST_HANG + 1);
            let before = judge::total();
            self.pass_until(300, |_| judge::total() > before);
            if judge::total() == before {
                broken("P7: a thread hangs, and the guest's output does not leave");
            }
        }
        trace("it continues");
        self.pass(1..50);
        self.heal();
        self.conclude(true);
    }

    /// A standby that hangs is noticed as soon as one that has died: no other thread sends its
    /// heartbeats.
    fn hang_at_the_standby(&mut self) {
        // Everything printed before has left by then.
        self.pass(50..100);
        let (left, blocks) = (self.random.u32(1..50), self.some_blocks());
        let happens = Happens::Hold(2 * LONGEST_SILENCE.as_nanos() as u64);
        let (host, behind, thread) = (Host::B, Call::Any, Some("main-standby"));
        faults::set_trap(Some(Trap { host, behind, thread, left, blocks, happens }));
        self.pass_until(500, |_| faults::is_held());
        if faults::is_held() {
            // Sleep longer than the bound: output printed at the beginning of the hang has then
            // waited too long.
            std::thread::sleep(LONGEST_SILENCE * 3 / 2);
            let wait = Duration::from_nanos(judge::longest_wait());
            if wait > LONGEST_SILENCE {
                broken(&format!("P7: a standby hangs, and output has waited for {wait:?}"));
            }
        }
        self.heal();
        self.conclude(true);
    }

    /// Tries to hold a thread while it has the engine's lock.
    fn hold_with_the_lock(&mut self) {
        const TRIES: u32 = 40;
        for _ in 0..TRIES {
            let thread = ["devices", "link", "link", "ticker"][self.random.usize(..4)];
            self.hold_one(thread);
            self.pass_until(40, |_| rest::is_stuck());
            if rest::is_stuck() {
                return;
            }
            faults::set_trap(None);
            faults::release();
            self.pass(1..10);
        }
    }

    pub(super) fn hold_one(&mut self, thread: &'static str) {
        let (left, blocks) = (self.random.u32(1..50), self.some_blocks());
        let happens = Happens::Hold((LONGEST_HANG + 1_000) * 1_000_000);
        let (host, behind, thread) = (Host::A, Call::Any, Some(thread));
        faults::set_trap(Some(Trap { host, behind, thread, left, blocks, happens }));
        self.pass_until(500, |_| faults::is_held());
    }
}
