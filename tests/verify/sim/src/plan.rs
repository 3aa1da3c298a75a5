//! The faults of a world and their times. They are made from the seed before the world begins, so
//! that a fault can be left out, and the smallest plan that still breaks a promise can be found.

use crate::disks::DiskFault;
use crate::random::{Random, mix};

/// A fault that a world can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process dies; its kernel closes its connections.
    Crash(usize),
    /// A process dies after this many more steps of its driver.
    CrashAfter(usize, u64),
    /// A host loses power: its peers get no notice.
    PowerOff(usize),
    /// A process is stopped for some milliseconds (SIGSTOP).
    Pause(usize, u64),
    /// A process is stopped for some milliseconds, after this many more steps of its driver.
    PauseAfter(usize, u64, u64),
    /// A process is stopped for some milliseconds once it has sealed its next epoch; the flag says
    /// whether its host is suspended.
    Nap(usize, u64, bool),
    /// A host is suspended: its monotonic clock stands still during that time.
    Suspend(usize, u64),
    /// A host's clock jumps ahead by some milliseconds.
    Jump(usize, u64),
    /// A connection breaks; data in transit is cut at a random place.
    Break(usize),
    /// A connection carries nothing in one direction for some milliseconds.
    Stall(usize, usize, u64),
    /// A host hears nothing from another for some milliseconds.
    Partition(usize, usize, u64),
    /// A host, or the primary's host, neither reaches another host or the arbiter nor is reached,
    /// for some milliseconds.
    Isolate(usize, u64),
    /// A bit flips in transit.
    Flip(usize, usize),
    /// Bytes are missing from the end of a frame.
    Truncate(usize, usize),
    /// This many frames vanish; 0: the last one.
    Drop(usize, usize, usize),
    /// A frame comes twice.
    Double(usize, usize),
    /// Two frames change places.
    Swap(usize, usize),
    /// An earlier frame comes again.
    Replay(usize, usize, usize),
    /// A stranger connects to the standby on a host, and repeats what a primary said in an earlier
    /// session.
    Impostor(usize, usize),
    /// The next primary that connects hears what a standby said in an earlier session, either first
    /// or after it was welcomed.
    Echo(usize, bool),
    /// A forged message: an acknowledgement in another term before the standby's own (0, 1); a
    /// primary's Bye to no session (2); a standby's message (3) or a primary's Bye (4) of another
    /// session.
    Forge(usize, u64),
    /// A standby that holds a checkpoint lives, but makes no checks for some milliseconds.
    Hang(usize, u64),
    /// The devices of the primary on a host make no progress for some milliseconds.
    Stuck(usize, u64),
    /// The standby on a host cannot have a machine for some milliseconds: it refuses connections.
    Refuse(usize, u64),
    /// The arbiter is slow for some milliseconds.
    ArbiterSlow(u64),
    /// The arbiter does not answer for some milliseconds.
    ArbiterDown(u64),
    /// A host cannot reach the arbiter for some milliseconds.
    ArbiterCut(usize, u64),
    /// The storage is full for some milliseconds.
    Full(u64),
    /// The operator acts on one of the machines.
    Operator(usize, u64),
    /// The operator wants the primary to run alone.
    Detach,
    /// A standby starts on a host where nothing runs.
    Start(usize),
    /// In a world with own disks.
    Disks(DiskFault),
}

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The step of the world.
    pub step: u64,
    /// The fault.
    pub fault: Fault,
}

impl core::fmt::Display for Planned {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "step {:>4}: {:?}", self.step, self.fault)
    }
}

/// Number of steps in which faults happen: one world in six lasts longer than all time-outs
/// together.
#[must_use]
pub(crate) fn steps(seed: u64) -> u64 {
    if Random::new(mix(seed, u64::MAX - 2)).one_in(6) { 6000 } else { 1500 }
}

/// The plan of a seed, for a world with this many steps.
#[must_use]
pub(crate) fn plan(seed: u64, steps: u64, nodes: usize) -> Vec<Planned> {
    drawn(seed, steps, 100, |random, step, plan| {
        let fault = fault(random, nodes);
        plan.push(Planned { step, fault });
        if matches!(fault, Fault::Hang(..)) && random.one_in(4) {
            plan.push(Planned { step: step + random.below(100), fault: Fault::Detach });
        }
        if fault == Fault::Detach && random.one_in(2) {
            // The detach order is lost, so only the standby knows whether it was asked.
            let lost = Fault::Drop(random.index(8), 1, 0);
            plan.push(Planned { step: step + random.below(4), fault: lost });
        }
    })
}

/// Draws the steps of the faults, and lets `add` draw the faults. One fault in three follows
/// another one within `soon` steps.
pub(crate) fn drawn(
    seed: u64,
    steps: u64,
    soon: u64,
    mut add: impl FnMut(&mut Random, u64, &mut Vec<Planned>),
) -> Vec<Planned> {
    let mut random = Random::new(mix(seed, u64::MAX));
    let most = [4, 12, 40][random.index(3)];
    let count = random.below(most);
    let mut plan: Vec<Planned> = Vec::new();
    for _ in 0..count {
        let after = plan.last().filter(|_| random.one_in(3)).map(|last| last.step);
        let step = after.map_or(20 + random.below(steps - 20), |last| last + random.below(soon));
        add(&mut random, step, &mut plan);
    }
    plan.sort_by_key(|planned| planned.step);
    plan
}

fn fault(random: &mut Random, nodes: usize) -> Fault {
    let kind = random.below(60);
    let (node, other, side) = (random.index(nodes), random.index(nodes), random.index(2));
    let longest = if random.one_in(3) { 900 } else { 250 };
    let time = random.below(longest);
    let some = random.below(20);
    match kind {
        0..3 => Fault::Crash(node),
        3..6 => Fault::CrashAfter(node, some),
        6 => Fault::PowerOff(node),
        7..9 => Fault::Pause(node, time),
        9..11 => Fault::PauseAfter(node, some, time),
        11 => Fault::Suspend(node, time),
        12 => Fault::Jump(node, time),
        13..15 => Fault::Break(random.index(8)),
        15..17 => Fault::Stall(random.index(8), side, time),
        17..20 => Fault::Partition(node, other, time),
        20..22 => Fault::Flip(random.index(8), side),
        22 => Fault::Truncate(random.index(8), side),
        23..25 => Fault::Drop(random.index(8), side, 1 + random.index(4)),
        25 => Fault::Double(random.index(8), side),
        26 => Fault::Swap(random.index(8), side),
        27..29 => Fault::Replay(random.index(8), side, random.index(128)),
        29 => Fault::Forge(random.index(8), random.below(5)),
        30..32 => Fault::ArbiterDown(time),
        32 => Fault::ArbiterCut(node, time),
        33 => Fault::Full(time),
        34..37 => Fault::Operator(node, random.below(6)),
        37..39 => Fault::Impostor(node, random.index(8)),
        // Longer than any time-out.
        39 | 47..50 => Fault::Hang(node, random.below(3000)),
        40..42 => Fault::Stuck(node, time),
        42..44 => Fault::Nap(node, 100 + time, random.one_in(2)),
        44..47 => Fault::Isolate(random.index(2 * nodes), 200 + time),
        50 => Fault::Detach,
        51..54 => Fault::Echo(random.index(128), random.one_in(2)),
        // Longer than any time-out.
        54..56 => Fault::Refuse(node, random.below(3000)),
        56 => Fault::ArbiterSlow(4 * time),
        _ => Fault::Start(node),
    }
}

/// The smallest part of a plan that is still `bad`, found by leaving out ever smaller parts (delta
/// debugging).
pub fn shrink(mut plan: Vec<Planned>, mut bad: impl FnMut(&[Planned]) -> bool) -> Vec<Planned> {
    let mut size = plan.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        let before = plan.len();
        while at < plan.len() {
            let mut rest = plan.clone();
            rest.drain(at..(at + size).min(plan.len()));
            if bad(&rest) {
                plan = rest;
            } else {
                at += size;
            }
        }
        if size == 1 && plan.len() == before {
            break;
        }
        size = if plan.len() < before { size } else { size / 2 }.min(plan.len());
    }
    plan
}
