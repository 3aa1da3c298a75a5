//! The outside observer: it sees what leaves, and everything else, and detects broken promises.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::guest::{Guest, Output, Registers};
use crate::tally::Tally;

/// The contents of a sealed checkpoint.
#[derive(Debug, PartialEq, Eq)]
struct Sealed {
    memory: u64,
    registers: Registers,
}

#[derive(Default)]
pub(crate) struct Observer {
    pub(crate) tally: Tally,
    /// The process that acted in each term.
    active: BTreeMap<u64, u64>,
    /// The highest term in which an effect was performed, and the process that performed it.
    performed: (u64, u64),
    /// Acknowledgements that standbys have sent, by term and epoch.
    acknowledged: BTreeSet<(u64, u64)>,
    sealed: HashMap<(u64, u64), Sealed>,
    /// The epoch of the checkpoint from which each term began.
    bases: BTreeMap<u64, u64>,
    /// Everything that the outside has seen.
    seen: Vec<Output>,
    /// The checkpoint that each standby holds, by its acknowledgements and not by its state.
    held: BTreeMap<u64, Held>,
}

/// A checkpoint that a standby has acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) term: u64,
    pub(crate) epoch: u64,
    /// The step of the acknowledgement.
    pub(crate) at: u64,
}

fn hash(guest: &Guest) -> u64 {
    guest.memory.iter().fold(17, |sum, page| xxhash_rust::xxh3::xxh3_64_with_seed(page, sum))
}

impl Observer {
    /// P2: a term belongs to one process, and that process has won it.
    pub(crate) fn acts(&mut self, term: u64, process: u64, winner: Option<u64>) {
        let first = *self.active.entry(term).or_insert(process);
        assert!(first == process, "P2: two machines act in term {term}");
        assert!(winner == Some(process), "P2: the machine that acts in term {term} has not won it");
    }

    pub(crate) fn begins_from(&mut self, term: u64, epoch: u64) {
        self.bases.insert(term, epoch);
        self.tally.late_terms += u64::from(term > 3);
    }

    pub(crate) fn acknowledges(&mut self, at: u64, process: u64, term: u64, epoch: u64) {
        let known = self.sealed.contains_key(&(term, epoch));
        assert!(known, "P4: epoch {epoch} of term {term} acknowledged, but never sealed");
        self.acknowledged.insert((term, epoch));
        self.held.insert(process, Held { term, epoch, at });
    }

    /// The checkpoint from which a standby can go on, by its own messages.
    pub(crate) fn held(&self, process: u64) -> Option<Held> {
        self.held.get(&process).copied()
    }

    /// The standby has said that it gives its checkpoint up, has gone on from it, or is dead.
    pub(crate) fn no_longer_holds(&mut self, process: u64) {
        self.held.remove(&process);
    }

    /// P4: a standby gives an acknowledged checkpoint up only after it has said so, or after
    /// another machine was permitted to go on without it.
    pub(crate) fn discards(&mut self, process: u64, replaced: bool) {
        if let Some(Held { term, epoch, .. }) = self.held.remove(&process) {
            assert!(
                replaced,
                "P4: epoch {epoch} of term {term} was acknowledged, and is discarded without a report"
            );
        }
    }

    /// P1: only acknowledged epochs are released.
    pub(crate) fn releases(&mut self, term: u64, epoch: u64) {
        let known = self.acknowledged.contains(&(term, epoch));
        assert!(known, "P1: epoch {epoch} of term {term} released, but never acknowledged");
        self.tally.released += 1;
    }

    pub(crate) fn seals(&mut self, term: u64, epoch: u64, guest: &Guest) {
        let sealed = Sealed { memory: hash(guest), registers: guest.registers.clone() };
        let before = self.sealed.insert((term, epoch), sealed);
        assert!(before.is_none(), "P1: epoch {epoch} of term {term} sealed twice");
    }

    /// P4: a checkpoint that is applied, or gone on from, is the one that was sealed.
    pub(crate) fn is_as_sealed(&self, term: u64, epoch: u64, guest: &Guest, what: &str) {
        let same = self.sealed.get(&(term, epoch)).is_some_and(|sealed| {
            sealed.memory == hash(guest) && sealed.registers == guest.registers
        });
        assert!(same, "P4: epoch {epoch} of term {term} {what}, but is not what was sealed");
    }

    /// An effect is performed. P2: terms never go back. P1: an effect that an earlier term still
    /// performs is in the checkpoint from which the later term began.
    pub(crate) fn performs(&mut self, process: u64, term: u64, epoch: u64) {
        // Work that a process began in one term may end after it has won its next term.
        let (last, by) = self.performed;
        assert!(term >= last || process == by, "P2: an effect of term {term} after one of {last}");
        self.performed = self.performed.max((term, process));
        for (won, base) in self.bases.range(term + 1..) {
            assert!(
                epoch <= *base,
                "P1: an effect of epoch {epoch}, term {term}, is not in what term {won} began from"
            );
        }
    }

    /// The outside must see the output of one machine that never failed: each output once and in
    /// order, except for repetitions of what was in flight at a takeover.
    pub(crate) fn sees(&mut self, output: Output, replay: bool) {
        self.tally.packets += 1;
        let last = self.seen.last().copied();
        if last.is_some_and(|last| output.serial <= last.serial) {
            let before = self.seen[output.serial as usize - 1];
            assert!(output == before, "P1: history was rewritten");
            assert!(replay, "P1: {output:?} was repeated without a takeover");
            return;
        }
        let (serial, history) = last.map_or((0, 0), |last| (last.serial, last.history));
        assert!(output.serial == serial + 1, "P1: an output was lost");
        assert!(output.after == history, "P1: what was seen was rolled back");
        self.seen.push(output);
    }

    pub(crate) fn outputs(&self) -> usize {
        self.seen.len()
    }
}
