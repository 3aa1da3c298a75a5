//! The judge of a world. It sees the output of the hosts, the frames on the link, and the guest's
//! memory at each start and takeover, and nothing else of the product.

use std::collections::VecDeque;

use crate::boots::{Boots, Spot};
use crate::broken;
use crate::guest::Place;
use crate::scheduler::{self, Host, Nanos, Owned};
use crate::tally::{self, Kind};

/// Number of bytes that a takeover may repeat: the effects in flight in its checkpoint (replay).
/// This is more than a console buffers while its reader is blocked.
const AGAIN: u64 = 160 << 10;

/// The guest's run on one host.
struct GuestRun {
    host: Host,
    /// How far the guest had come when this run began, in bytes of the whole chain of boots.
    begun: u64,
    /// The guest's boot when this run began: several if its memory contained no boot number.
    from: Vec<u64>,
    /// The guest's current boot: several if its memory contained no boot number.
    now: Vec<u64>,
    /// The possible spots of the next byte of output; empty before the first.
    next: Vec<Spot>,
}

struct Judge {
    runs: Vec<GuestRun>,
    boots: Boots,
    /// The furthest byte that has left a host.
    left: Spot,
    /// Number of steps of the guest. Steps on a replaced host are not counted.
    steps: u64,
    wants_off: bool,
    /// Output of the guest that has not left: its position in the chain, and when it was printed.
    waits: VecDeque<(u64, Nanos)>,
    /// Since when the guest has waited for a reset.
    waits_reset: Option<Nanos>,
    /// Hosts whose machine has ended and released its name at the arbiter.
    free: Vec<Host>,
    /// The last checkpoint whose end was sent, and the last one that was acknowledged.
    sent: u64,
    acknowledged: u64,
    /// No fault is active: the primary has a standby, and releases nothing without its
    /// acknowledgement.
    in_peace: bool,
}

static JUDGE: Owned<Judge> = Owned::new(Judge {
    runs: Vec::new(),
    boots: Boots::new(),
    left: Spot { boot: 0, number: 0 },
    steps: 0,
    wants_off: false,
    waits: VecDeque::new(),
    waits_reset: None,
    free: Vec::new(),
    sent: 0,
    acknowledged: 0,
    in_peace: false,
});

fn now() -> Nanos {
    scheduler::with(|world| world.now)
}

/// Sets, before the world begins, the number of bytes that each boot prints before it asks to be
/// reset; 0: it never asks.
pub(crate) fn set_per_boot(bytes: u64) {
    JUDGE.with(|judge| judge.boots.per_boot = bytes);
}

/// Judges the memory `found` from which the guest is about to run on `host`.
pub(crate) fn begins(host: Host, found: Result<Place, String>) {
    let found = match found {
        Ok(found) => found,
        Err(why) => broken(&format!("P4: memory on {host:?}: {why}")),
    };
    crate::trace(&format!("the guest continues in {found:?} on {host:?}"));
    if let Err(why) = JUDGE.with(|judge| judge.begins(host, found)) {
        broken(&why);
    }
}

/// Judges bytes that leave `host`.
pub(crate) fn output(at: Nanos, host: Host, bytes: &[u8]) {
    for byte in bytes {
        if let Err(why) = JUDGE.with(|judge| judge.byte(host, *byte)) {
            broken(&format!("{why} (on {host:?} at {} us)", at / 1000));
        }
    }
}

/// Numbers the boot of a guest that begins to run after a start or a reset; returns the number.
pub(crate) fn boots(host: Host) -> u64 {
    let boot = match JUDGE.with(|judge| judge.boots(host)) {
        Ok(boot) => boot,
        Err(why) => broken(&format!("{why} (on {host:?} at {} us)", now() / 1000)),
    };
    crate::trace(&format!("the guest boots on {host:?}: boot {boot}"));
    boot
}

/// Records that the guest has asked to be reset.
pub(crate) fn wants_reset(host: Host, boot: u64) {
    let now = now();
    JUDGE.with(|judge| {
        judge.boots.asks(boot, judge.in_peace.then_some(judge.sent));
        if judge.runs.last().is_some_and(|run| run.host == host) {
            judge.waits_reset.get_or_insert(now);
        }
    });
}

/// How long the guest has waited for its reset.
pub(crate) fn reset_waits() -> Nanos {
    let now = now();
    JUDGE.with(|judge| judge.waits_reset.map_or(0, |since| now - since))
}

/// Number of boots after the first.
pub(crate) fn resets() -> u64 {
    JUDGE.with(|judge| judge.boots.count().saturating_sub(1))
}

/// Sets whether the guest is protected and no fault is active.
pub(crate) fn set_in_peace(on: bool) {
    JUDGE.with(|judge| judge.in_peace = on);
}

/// Records that the end of a checkpoint passes on the link.
pub(crate) fn sent(epoch: u64) {
    JUDGE.with(|judge| judge.sent = judge.sent.max(epoch));
}

/// Records that an acknowledgement passes on the link.
pub(crate) fn acknowledged(epoch: u64) {
    JUDGE.with(|judge| judge.acknowledged = judge.acknowledged.max(epoch));
}

/// Records that the guest has made a step.
pub(crate) fn stepped(host: Host) {
    JUDGE.with(|judge| {
        if judge.runs.last().is_some_and(|run| run.host == host) {
            judge.steps += 1;
        }
    });
}

/// Records that the guest has printed up to this place.
pub(crate) fn asked(host: Host, place: Place) {
    let now = now();
    JUDGE.with(|judge| {
        if judge.runs.last().is_some_and(|run| run.host == host) {
            let spot = Spot { boot: place.boot, number: place.printed };
            judge.waits.push_back((judge.boots.far(spot), now));
        }
    });
}

/// How long the oldest output that has not left has waited.
pub(crate) fn longest_wait() -> Nanos {
    let now = now();
    JUDGE.with(|judge| judge.waits.front().map_or(0, |(_, since)| now - since))
}

/// Records that the machine on `host` is about to release its name and its disks: from now on
/// nothing may leave it (P2).
pub(crate) fn is_free(host: Host) {
    JUDGE.with(|judge| judge.free.push(host));
}

/// The host of the guest's last run.
pub(crate) fn last_host() -> Option<Host> {
    JUDGE.with(|judge| judge.runs.last().map(|run| run.host))
}

/// Records that the guest has asked for a power-off.
pub(crate) fn wants_off() {
    JUDGE.with(|judge| judge.wants_off = true);
}

/// Whether the guest has asked for a power-off.
pub(crate) fn has_wanted_off() -> bool {
    JUDGE.with(|judge| judge.wants_off)
}

/// Number of steps that the guest has made.
pub(crate) fn steps() -> u64 {
    JUDGE.with(|judge| judge.steps)
}

/// Number of bytes that have left, without repetitions.
pub(crate) fn total() -> u64 {
    JUDGE.with(|judge| judge.total())
}

/// Number of starts and takeovers of the guest.
pub(crate) fn runs() -> usize {
    JUDGE.with(|judge| judge.runs.len())
}

impl Judge {
    fn total(&self) -> u64 {
        self.boots.far(self.left)
    }

    fn begins(&mut self, host: Host, found: Place) -> Result<(), String> {
        if !self.runs.is_empty() {
            tally::saw(Kind::Takeover);
            if self.boots.count() > 1 {
                tally::saw(Kind::TakeoverAfterReset);
            }
        }
        // Memory without a boot number belongs to a machine whose reset was released, or to the
        // first boot.
        let from = match found.boot {
            0 => self.boots.asked_from(self.left.boot),
            boot => vec![boot],
        };
        let total = self.total();
        if from.is_empty() {
            return Err(format!(
                "P1: the guest boots again on {host:?}, {total} bytes have left, and no boot since then has \
                 requested a reset"
            ));
        }
        let begun = match found.boot {
            0 => from.iter().map(|boot| self.boots.end(*boot)).max().unwrap_or(0),
            boot => self.boots.far(Spot { boot, number: found.printed }),
        };
        let known = from.clone();
        self.runs.push(GuestRun { host, begun, now: from.clone(), from, next: Vec::new() });
        self.waits.clear();
        self.waits_reset = None;
        if total > begun || !known.iter().any(|boot| self.boots.leads_to(self.left.boot, *boot)) {
            return Err(format!(
                "P1: {total} bytes have left, to {:?}, and the guest continues after byte {begun}, in {found:?}",
                self.left
            ));
        }
        Ok(())
    }

    fn boots(&mut self, host: Host) -> Result<u64, String> {
        let Some(run) = self.runs.iter_mut().rfind(|run| run.host == host) else {
            return Err("P2: a guest boots on a host that has no guest".to_owned());
        };
        let former = std::mem::take(&mut run.now);
        for boot in &former {
            self.boots.may_be_reset(*boot, self.in_peace.then_some(self.acknowledged))?;
        }
        if former != [0] {
            tally::saw(Kind::Reset);
        }
        let boot = self.boots.add(former);
        run.now = vec![boot];
        if self.runs.last().is_some_and(|run| run.host == host) {
            self.waits_reset = None;
        }
        Ok(boot)
    }

    fn byte(&mut self, host: Host, byte: u8) -> Result<(), String> {
        let total = self.total();
        let last = self.runs.len() - 1;
        let Some(index) = self.runs.iter().rposition(|run| run.host == host) else {
            return Err("P2: a byte of a guest that does not run on this host".to_owned());
        };
        if index < last && !self.runs[last].next.is_empty() {
            return Err("P2: a byte of the replaced side after the new side's first".to_owned());
        }
        if self.free.contains(&host) {
            return Err("P2: a byte of a machine that has given its name back".to_owned());
        }
        let mut may_be = std::mem::take(&mut self.runs[index].next);
        if may_be.is_empty() {
            may_be = match index {
                0 => vec![Spot { boot: 0, number: 0 }],
                _ => self.boots.before(self.left, AGAIN),
            };
        }
        let next = self.boots.after(&may_be, byte);
        // Of the possible spots, take the earliest.
        let Some(spot) = next.iter().copied().min_by_key(|spot| self.boots.far(*spot)) else {
            return Err(format!(
                "P1, P3: a byte that is neither the next one nor a repeated one; the last one was {:?}",
                self.left
            ));
        };
        self.runs[index].next = next;
        let now = self.boots.far(spot);
        let new = &self.runs[last];
        let is_known = || new.from.iter().any(|boot| self.boots.leads_to(spot.boot, *boot));
        if index < last && (now > new.begun || !is_known()) {
            return Err(format!(
                "P1: byte {now} left, of {spot:?}, and the guest has continued after byte {}",
                new.begun
            ));
        }
        while index == last && self.waits.front().is_some_and(|(printed, _)| *printed <= now) {
            self.waits.pop_front();
        }
        if now > total {
            self.left = spot;
        }
        Ok(())
    }
}
