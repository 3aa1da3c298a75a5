//! The judge: sees what leaves the two hosts and what memory the guest finds where it goes on, and nothing else of the product.

use std::collections::VecDeque;

use crate::broken;
use crate::guest;
use crate::scheduler::{self, Host, Nanos, Owned};

/// So many bytes may be let out a second time by the side that takes over: what its checkpoint has in flight. More than a
/// console keeps for a reader who takes nothing.
const AGAIN: u64 = 160 << 10;

/// The guest's life on one host.
struct Life {
    host: Host,
    /// How much the guest had printed when it began.
    begun: u64,
    /// The numbers that the byte which is to leave next may have; none: nothing has left.
    next: Vec<u64>,
}

struct Judge {
    lives: Vec<Life>,
    /// Bytes that have left, each counted once.
    total: u64,
    /// Steps that the guest has come to, on whichever host it was last.
    steps: u64,
    wants_off: bool,
    /// What the guest has printed and has not left: how much was printed by then, and when.
    waits: VecDeque<(u64, Nanos)>,
    /// Hosts whose machine has ended, and whose name is anybody's.
    free: Vec<Host>,
}

static JUDGE: Owned<Judge> = Owned::new(Judge {
    lives: Vec::new(),
    total: 0,
    steps: 0,
    wants_off: false,
    waits: VecDeque::new(),
    free: Vec::new(),
});

/// The guest is about to run on `host`, from the memory that was `found`: how much it has printed.
pub(crate) fn begins(host: Host, found: Result<u64, String>) {
    let begun = match found {
        Ok(begun) => begun,
        Err(why) => broken(&format!("P4: memory on {host:?}: {why}")),
    };
    crate::trace(&format!("the guest goes on behind byte {begun} on {host:?}"));
    let total = JUDGE.with(|judge| {
        judge.lives.push(Life { host, begun, next: Vec::new() });
        judge.waits.clear();
        judge.total
    });
    if total > begun {
        broken(&format!("P1: {total} bytes have left, and the guest goes on behind byte {begun}"));
    }
}

/// Bytes leave.
pub(crate) fn output(at: Nanos, host: Host, bytes: &[u8]) {
    for byte in bytes {
        if let Err(why) = JUDGE.with(|judge| judge.byte(host, *byte)) {
            broken(&format!("{why} (on {host:?} at {} us)", at / 1000));
        }
    }
}

/// The guest has come to a step.
pub(crate) fn stepped(host: Host, step: u64) {
    JUDGE.with(|judge| {
        if judge.lives.last().is_some_and(|life| life.host == host) {
            judge.steps = step;
        }
    });
}

/// The guest has printed so much by now.
pub(crate) fn asked(host: Host, printed: u64) {
    let now = scheduler::with(|world| world.now);
    JUDGE.with(|judge| {
        if judge.lives.last().is_some_and(|life| life.host == host) {
            judge.waits.push_back((printed, now));
        }
    });
}

/// For how long the oldest byte that has not left waits.
pub(crate) fn longest_wait() -> Nanos {
    let now = scheduler::with(|world| world.now);
    JUDGE.with(|judge| judge.waits.front().map_or(0, |(_, since)| now - since))
}

/// The machine on `host` is about to give its name and its disks back: nothing leaves it any more (P2).
pub(crate) fn is_free(host: Host) {
    JUDGE.with(|judge| judge.free.push(host));
}

/// Where the guest is.
pub(crate) fn last_host() -> Option<Host> {
    JUDGE.with(|judge| judge.lives.last().map(|life| life.host))
}

/// The guest has asked to be powered off.
pub(crate) fn wants_off() {
    JUDGE.with(|judge| judge.wants_off = true);
}

/// Whether it has.
pub(crate) fn has_wanted_off() -> bool {
    JUDGE.with(|judge| judge.wants_off)
}

/// To which step the guest has come.
pub(crate) fn steps() -> u64 {
    JUDGE.with(|judge| judge.steps)
}

/// Bytes that have left, each counted once.
pub(crate) fn total() -> u64 {
    JUDGE.with(|judge| judge.total)
}

/// How often the guest has begun or gone on.
pub(crate) fn lives() -> usize {
    JUDGE.with(|judge| judge.lives.len())
}

impl Judge {
    fn byte(&mut self, host: Host, byte: u8) -> Result<(), String> {
        let total = self.total;
        let last = self.lives.len() - 1;
        let Some(index) = self.lives.iter().rposition(|life| life.host == host) else {
            return Err("P2: a byte of a guest that does not run here".to_owned());
        };
        if index < last && !self.lives[last].next.is_empty() {
            return Err("P2: a byte of the replaced side after the new side's first".to_owned());
        }
        if self.free.contains(&host) {
            return Err("P2: a byte of a machine that has given its name back".to_owned());
        }
        let bound = self.lives[last].begun;
        let life = &mut self.lives[index];
        if life.next.is_empty() {
            let first = if index == 0 { 0 } else { total.saturating_sub(AGAIN) };
            life.next = (first..=total).collect();
        }
        life.next.retain(|number| guest::byte(*number) == byte);
        life.next.iter_mut().for_each(|number| *number += 1);
        // The least that it may be.
        let Some(now) = life.next.first().copied() else {
            return Err(format!(
                "P1, P3: a byte that is not the next one, nor one of before {total}"
            ));
        };
        if index < last && now > bound {
            return Err(format!(
                "P1: byte {now} left, and the guest has gone on behind byte {bound}"
            ));
        }
        while index == last && self.waits.front().is_some_and(|(printed, _)| *printed <= now) {
            self.waits.pop_front();
        }
        self.total = total.max(now);
        Ok(())
    }
}
