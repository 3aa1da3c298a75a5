//! Worlds in which the guest resets itself repeatedly.

use std::time::{Duration, Instant};

use ft_core::primary::Phase;

use super::{LOOK_EVERY, World};
use crate::faults::{Call, Happens, Trap};
use crate::scheduler::Host;
use crate::{broken, faults, judge, trace};

/// Without faults, a machine must be reset, and its guest run again, within this time.
const SOON_RESET: Duration = Duration::from_millis(100);

impl World {
    /// A reset is released like every effect: the standby knows of it before it is performed, and a
    /// side that takes over performs it once (P1, P7). Checkpoints contain what the new boot
    /// writes, and nothing of the old boot (P4, P8).
    pub(super) fn be_reset(&mut self) {
        self.wait_protected();
        if self.random.bool() {
            self.be_reset_in_peace();
        }
        for _ in 0..self.random.usize(1..=3) {
            self.disturb_a_reset();
            self.pass(1..200);
        }
        let protected = self.phase() == Some(Phase::Protected);
        self.heal();
        self.conclude(protected);
        if judge::runs() == 1 && self.phase() == Some(Phase::Protected) {
            self.kill_soon_after_a_reset();
        }
        if judge::last_host() == Some(Host::B) {
            let before = judge::resets();
            self.wait_for("P7: a reset of a guest that was taken over", |_| {
                judge::resets() > before + 1
            });
        }
    }

    fn be_reset_in_peace(&mut self) {
        // Output that was held before the first checkpoint has left by then.
        self.pass(50..100);
        let (begun, mut longest) = (Instant::now(), Duration::ZERO);
        let millis = self.random.u64(100..800);
        judge::set_in_peace(true);
        while begun.elapsed() < Duration::from_millis(millis) {
            let wait = Duration::from_nanos(judge::reset_waits());
            longest = longest.max(wait);
            if wait > SOON_RESET {
                broken(&format!(
                    "P7: the guest waits for its reset for {wait:?}, and nothing fails"
                ));
            }
            if self.phase() != Some(Phase::Protected) {
                broken("P7: protected no more, and nothing fails");
            }
            std::thread::sleep(LOOK_EVERY);
        }
        judge::set_in_peace(false);
        trace(&format!("a reset has taken {longest:?} at most"));
    }

    /// Injects a fault at the moment at which the guest asks for its reset.
    fn disturb_a_reset(&mut self) {
        if self.random.u32(..3) == 0 {
            faults::set_storage(Host::A, self.random.u64(..80_000_000));
        }
        let thread = ["devices", "power", "sender", "link"][self.random.usize(..4)];
        let (left, blocks) = (self.random.u32(1..200), self.some_blocks());
        let nanos = self.random.u64(1_000_000..1_500_000_000);
        let (behind, thread, happens) = match self.random.u32(..8) {
            0..4 => (Call::Any, Some(thread), Happens::Hold(nanos)),
            4 | 5 => (Call::Any, Some(thread), Happens::Stop(nanos)),
            6 => (Call::Kvm, Some("devices"), Happens::Stop(nanos)),
            _ => return self.cut_link_around_a_reset(),
        };
        faults::set_trap_at_request(Trap { host: Host::A, behind, thread, left, blocks, happens });
        self.pass(1..400);
        if self.random.bool() {
            self.cut_link();
        }
    }

    fn cut_link_around_a_reset(&mut self) {
        let before = judge::resets();
        self.pass_until(600, |_| judge::reset_waits() > 0 || judge::resets() > before);
        self.pass(0..3);
        self.cut_link();
    }

    /// The standby continues from the new boot, or from just before the reset.
    fn kill_soon_after_a_reset(&mut self) {
        let before = judge::resets();
        self.pass_until(2000, |_| judge::resets() > before || judge::reset_waits() > 0);
        self.pass(0..20);
        self.kill(Host::A);
        self.wait_for("P7: a takeover", |_| judge::runs() > 1);
    }
}
