//! The judge: sees all images, all that is told, and the arbiter's record.

use std::collections::HashSet;

use ft_core::disks::Seq;

use super::guest::{Guest, Output, Places, Request};
use super::image::{Content, Image, SECTORS};

/// A flush that a guest saw complete: what it covers, and the places of the writes that were staged
/// before it completed.
struct Flushed {
    /// The guest's count of flushes, with this one.
    number: u64,
    covers: Places,
    issued: Places,
}

pub(super) struct Judge {
    /// For each sector, all that was written there by the machine that has survived.
    history: [Vec<u64>; SECTORS],
    /// What the outside was told to be flushed.
    told: Places,
    flushes: Vec<Flushed>,
    outputs: Vec<u64>,
    /// Guest writes that were performed, by host, the process that staged them, and their entry.
    performed: HashSet<(usize, u64, Seq)>,
    next_value: u64,
}

impl Judge {
    pub(super) fn new() -> Self {
        Self {
            history: std::array::from_fn(|_| vec![0]),
            told: [0; SECTORS],
            flushes: Vec::new(),
            outputs: Vec::new(),
            performed: HashSet::new(),
            next_value: 0,
        }
    }

    pub(super) fn lengths(&self) -> Places {
        std::array::from_fn(|sector| self.history[sector].len())
    }

    pub(super) fn flushed(&self) -> Places {
        self.told
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// A value that is written nowhere else.
    pub(super) fn fresh(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value << 8 | 1
    }

    /// The machine that counts stages a write.
    pub(super) fn stages(&mut self, sector: usize, value: u64) {
        self.history[sector].push(value);
    }

    pub(super) fn performs(&mut self, host: usize, by: u64, seq: Seq) {
        assert!(self.performed.insert((host, by, seq)), "R1: entry {seq:?} is performed again");
    }

    /// What a guest reads is complete or under way.
    pub(super) fn reads(&self, guest: &Guest, sector: usize, value: u64) {
        let places = guest.completed()[sector]..guest.issued[sector];
        let known = &self.history[sector][places];
        assert!(
            known.contains(&value),
            "P3: the guest reads {value:x} from sector {sector}, expected one of {known:x?}"
        );
    }

    /// Everything that was staged is performed.
    pub(super) fn at_rest(&self, content: &Content, what: &str) {
        for (sector, value) in content.iter().enumerate() {
            let last = self.history[sector].last();
            assert!(
                last == Some(value),
                "P3: sector {sector} of {what} holds {value:x}, expected {last:x?}"
            );
        }
    }

    pub(super) fn flush_completes(&mut self, guest: &Guest, request: &Request) {
        if let super::guest::Kind::Flush(covers) = request.kind {
            let (number, issued) = (guest.flushes, guest.issued);
            self.flushes.push(Flushed { number, covers, issued });
        }
    }

    /// The outside is told.
    pub(super) fn told(&mut self, output: &Output) {
        let at = output.serial as usize;
        match self.outputs.get(at - 1) {
            Some(known) => assert!(*known == output.history, "P1: output {at} has two contents"),
            None => {
                assert!(at == self.outputs.len() + 1, "P1: the outputs before {at} are missing");
                self.outputs.push(output.history);
            }
        }
        for (told, flushed) in self.told.iter_mut().zip(&output.flushed) {
            *told = (*told).max(*flushed);
        }
    }

    /// P3: an image in the set has all that was told after a flush, whatever loses power.
    pub(super) fn in_set(&self, host: usize, durable: &Content) {
        for (sector, value) in durable.iter().enumerate() {
            let since = &self.history[sector][self.told[sector]..];
            assert!(
                since.contains(value),
                "P3: sector {sector} was reported as flushed, but the durable image of {host}, which is in the set, \
                 holds {value:x}, not one of {since:x?}"
            );
        }
    }

    /// A standby goes on from a checkpoint.
    pub(super) fn takes_over(&mut self, guest: &Guest) {
        assert!(
            guest.outputs as usize >= self.outputs.len(),
            "P1: {} outputs were told, and the checkpoint has {}",
            self.outputs.len(),
            guest.outputs
        );
        for (sector, history) in self.history.iter_mut().enumerate() {
            assert!(self.told[sector] < guest.issued[sector], "P3: a flush that was told is lost");
            history.truncate(guest.issued[sector]);
        }
        // A flush that completed behind the checkpoint never happened, even if the guest had staged
        // all writes before it.
        self.flushes.retain(|flush| flush.number <= guest.flushes);
    }

    /// The operator has given up what only lost images had. The host's cache may still have writes
    /// of an earlier process: until the next flush, a power loss may keep or lose each of them.
    pub(super) fn forced(&mut self, image: &Image) {
        self.history = std::array::from_fn(|sector| image.possible(sector));
        self.told = [0; SECTORS];
        self.flushes.clear();
    }

    /// A machine boots from an image.
    pub(super) fn boots(&mut self, host: usize, content: &Content) {
        let mut found = [(0, 0); SECTORS];
        for (sector, value) in content.iter().enumerate() {
            let told = self.told[sector];
            let places = || {
                (told..self.history[sector].len()).filter(|at| self.history[sector][*at] == *value)
            };
            let (Some(first), Some(last)) = (places().next(), places().next_back()) else {
                panic!(
                    "P3: {host} starts, and sector {sector} holds {value:x}: older than what was told, or undone"
                );
            };
            found[sector] = (first, last);
        }
        for flush in &self.flushes {
            let after = (0..SECTORS).any(|sector| found[sector].0 >= flush.issued[sector]);
            let whole = (0..SECTORS).all(|sector| found[sector].1 >= flush.covers[sector]);
            assert!(
                !after || whole,
                "R1: {host} starts with writes from behind a flush, and without some before it"
            );
        }
        for (sector, history) in self.history.iter_mut().enumerate() {
            history.truncate(found[sector].1 + 1);
        }
        self.flushes.clear();
        self.outputs.clear();
    }
}

#[cfg(test)]
mod tests {
    use ft_core::disks::Extent;

    use super::super::guest::Kind;
    use super::super::image::SECTOR;
    use super::*;
    use crate::random::Random;

    /// P3: a start by force gives up no write that the cache of its host still has. With only the
    /// durable and the newest value of a sector, the second start panics.
    #[test]
    fn a_power_loss_after_a_start_by_force_leaves_any_unsynced_write() {
        let extent = Extent { disk: 0, start: SECTOR, len: SECTOR };
        let mut image = Image::default();
        for value in [5_u64, 6] {
            image.write(&extent, &value.to_le_bytes()).expect("nothing fails");
        }
        assert_eq!(image.possible(1), [0, 5, 6]);
        let mut found = HashSet::new();
        for seed in 0..100 {
            let (mut image, mut judge) = (image.clone(), Judge::new());
            judge.forced(&image);
            judge.boots(0, &image.content);
            image.lose_power(&mut Random::new(seed));
            judge.boots(0, &image.content);
            found.insert(image.content[1]);
        }
        assert_eq!(found, HashSet::from([0, 5, 6]));
    }

    /// R1: a flush that completed behind the checkpoint of a takeover orders nothing. If the judge
    /// keeps it, the start panics: it has the second write, and not the first.
    #[test]
    fn a_flush_that_a_takeover_has_undone_orders_nothing() {
        let mut judge = Judge::new();
        let mut guest = Guest::boot(judge.lengths(), judge.flushed(), 0);
        let extent = |sector| Extent { disk: 0, start: sector * SECTOR, len: SECTOR };
        judge.stages(1, 5);
        let write = guest.ask(Kind::Write(extent(1)), Seq(1), 1);
        guest.complete(write).expect("a write");
        let flush = guest.ask(Kind::Flush(guest.completed()), Seq(2), 1);
        let checkpoint = guest.clone();
        let request = guest.complete(flush).expect("a flush");
        judge.flush_completes(&guest, &request);

        judge.takes_over(&checkpoint);
        judge.stages(2, 6);
        let mut content = [0; SECTORS];
        content[2] = 6;
        judge.boots(0, &content);
    }
}
