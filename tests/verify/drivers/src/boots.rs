//! The guest's boots. The judge numbers the boots, and the guest's memory contains the number of
//! its boot. Each boot follows the boot from which the machine was reset. The output of all boots
//! is one chain: each boot prints a fixed number of bytes and then asks to be reset.

use crate::guest;

/// The position of a printed byte: its boot, and its index in that boot. Boot 0 is the time before
/// the first boot, and prints nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) boot: u64,
    pub(crate) number: u64,
}

struct Boot {
    /// The boots from which this one may have been reset: several if the memory in which it began
    /// contained no boot number.
    after: Vec<u64>,
    /// The largest number of bytes that may have been printed before this boot.
    start: u64,
    /// Whether this boot has asked to be reset.
    asked: bool,
    /// The last checkpoint sent before this boot asked; `None` if a fault was active then.
    sent: Option<u64>,
}

pub(crate) struct Boots {
    /// Boot `n` has index `n - 1`.
    all: Vec<Boot>,
    /// Number of bytes that each boot prints before it asks for a reset; 0: it never asks.
    pub(crate) per_boot: u64,
}

impl Boots {
    pub(crate) const fn new() -> Self {
        Self { all: Vec::new(), per_boot: 0 }
    }

    pub(crate) fn count(&self) -> u64 {
        self.all.len() as u64
    }

    fn of(&self, boot: u64) -> Option<&Boot> {
        self.all.get(usize::try_from(boot).ok()?.checked_sub(1)?)
    }

    pub(crate) fn add(&mut self, after: Vec<u64>) -> u64 {
        let start = after.iter().map(|boot| self.end(*boot)).max().unwrap_or(0);
        self.all.push(Boot { after, start, asked: false, sent: None });
        self.count()
    }

    /// Records that the boot asks to be reset. `sent` is the last checkpoint sent, or `None` while
    /// a fault is active.
    pub(crate) fn asks(&mut self, boot: u64, sent: Option<u64>) {
        let index = usize::try_from(boot).ok().and_then(|boot| boot.checked_sub(1));
        let boot = index.and_then(|index| self.all.get_mut(index)).expect("a boot that runs");
        if !boot.asked {
            (boot.asked, boot.sent) = (true, sent);
        }
    }

    /// Whether a machine in which this boot ran may have been reset. `acknowledged` is the last
    /// acknowledged checkpoint, or `None` while a fault is active.
    pub(crate) fn may_be_reset(&self, boot: u64, acknowledged: Option<u64>) -> Result<(), String> {
        let Some(found) = self.of(boot) else { return Ok(()) };
        if !found.asked {
            return Err(format!("P1: a reset that boot {boot} has not requested"));
        }
        match (found.sent, acknowledged) {
            (Some(sent), Some(acknowledged)) if acknowledged <= sent => Err(format!(
                "P1: a reset that the standby does not know: it has acknowledged checkpoint {acknowledged}, and \
                 {sent} had been sent when boot {boot} requested it"
            )),
            _ => Ok(()),
        }
    }

    /// Number of bytes printed before this byte, in the whole chain.
    pub(crate) fn far(&self, spot: Spot) -> u64 {
        self.of(spot.boot).map_or(0, |boot| boot.start) + spot.number
    }

    /// Number of bytes printed, in the whole chain, when `boot` asks to be reset.
    pub(crate) fn end(&self, boot: u64) -> u64 {
        self.of(boot).map_or(0, |boot| boot.start + self.per_boot)
    }

    /// Whether the chain of `later` contains `boot`.
    pub(crate) fn leads_to(&self, boot: u64, later: u64) -> bool {
        let mut open = vec![later];
        while let Some(next) = open.pop() {
            if next == boot {
                return true;
            }
            // Numbers grow along a chain, so a boot below `boot` cannot follow it.
            let after = self.of(next).map_or(&[][..], |boot| &boot.after);
            open.extend(after.iter().copied().filter(|after| *after >= boot));
        }
        false
    }

    /// The boots after `boot`, itself included, that have asked to be reset. Boot 0 need not ask.
    pub(crate) fn asked_from(&self, boot: u64) -> Vec<u64> {
        let asked = |other: &u64| self.of(*other).is_none_or(|other| other.asked);
        (boot..=self.count()).filter(asked).filter(|other| self.leads_to(boot, *other)).collect()
    }

    /// The possible spots after `byte`, if `byte` was printed at one of `spots`.
    pub(crate) fn after(&self, spots: &[Spot], byte: u8) -> Vec<Spot> {
        let mut next: Vec<Spot> = Vec::new();
        for spot in spots {
            for Spot { boot, number } in self.here(*spot) {
                let behind = Spot { boot, number: number + 1 };
                if guest::byte(boot, number) == byte && !next.contains(&behind) {
                    next.push(behind);
                }
            }
        }
        next
    }

    /// The spot itself. If the spot is the end of a boot: the first spots of the boots that follow.
    fn here(&self, spot: Spot) -> Vec<Spot> {
        let is_over = spot.boot == 0 || self.per_boot > 0 && spot.number == self.per_boot;
        if !is_over {
            return vec![spot];
        }
        let follows = |boot: &u64| self.of(*boot).is_some_and(|of| of.after.contains(&spot.boot));
        let first = |boot| Spot { boot, number: 0 };
        (spot.boot + 1..=self.count()).filter(follows).map(first).collect()
    }

    /// The spots of the last `count` bytes before this spot, and the spot itself, in order.
    pub(crate) fn before(&self, spot: Spot, count: u64) -> Vec<Spot> {
        let mut spots = vec![spot];
        let mut last = spot;
        while (spots.len() as u64) <= count {
            last = match (last.number.checked_sub(1), self.of(last.boot)) {
                (Some(number), _) => Spot { number, ..last },
                // Choose the longest chain among the boots from which this one may have been reset.
                (None, Some(boot)) => {
                    let former = boot.after.iter().copied().max_by_key(|boot| self.end(*boot));
                    match (former, self.per_boot.checked_sub(1)) {
                        (Some(boot @ 1..), Some(number)) => Spot { boot, number },
                        _ => break,
                    }
                }
                (None, None) => break,
            };
            spots.push(last);
        }
        spots.reverse();
        spots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(boot: u64, number: u64) -> Spot {
        Spot { boot, number }
    }

    /// Two boots of three bytes, and a third that follows one of them.
    fn chain() -> Boots {
        let mut boots = Boots { per_boot: 3, ..Boots::new() };
        boots.add(vec![0]);
        boots.asks(1, None);
        boots.add(vec![1]);
        boots.asks(2, None);
        boots.add(vec![1, 2]);
        boots
    }

    #[test]
    fn what_is_printed_is_one_chain() {
        let boots = chain();
        assert_eq!(
            (boots.far(spot(1, 2)), boots.far(spot(2, 0)), boots.far(spot(3, 1))),
            (2, 3, 7)
        );
        assert!(boots.leads_to(1, 3) && boots.leads_to(0, 1) && !boots.leads_to(3, 2));
        let spots = boots.before(spot(2, 1), 3);
        assert_eq!(spots, [spot(1, 1), spot(1, 2), spot(2, 0), spot(2, 1)]);
        assert_eq!(boots.before(spot(0, 0), 9), [spot(0, 0)]);
    }

    #[test]
    fn behind_the_last_byte_of_a_boot_comes_the_first_of_one_that_follows() {
        let boots = chain();
        assert_eq!(boots.after(&[spot(0, 0)], guest::byte(1, 0)), [spot(1, 1)]);
        assert_eq!(boots.after(&[spot(1, 3)], guest::byte(2, 0)), [spot(2, 1)]);
        assert_eq!(boots.after(&[spot(1, 3)], guest::byte(3, 0)), [spot(3, 1)]);
        assert_eq!(boots.after(&[spot(1, 2)], guest::byte(2, 0)), []);
    }

    #[test]
    fn a_reset_is_asked_for_and_known_to_the_standby() {
        let mut boots = Boots { per_boot: 3, ..Boots::new() };
        boots.add(vec![0]);
        assert!(boots.may_be_reset(1, None).is_err(), "not asked for");
        assert!(boots.asked_from(1).is_empty());
        boots.asks(1, Some(7));
        assert!(boots.may_be_reset(1, Some(7)).is_err(), "sent before it was asked for");
        boots.may_be_reset(1, Some(8)).expect("acknowledged afterwards");
        boots.may_be_reset(1, None).expect("something has failed");
        assert_eq!((boots.asked_from(1), boots.asked_from(0)), (vec![1], vec![0, 1]));
    }
}
