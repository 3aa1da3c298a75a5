//! The outside observer, the arbiter's book, and what is compared against them.

use std::collections::{BTreeMap, BTreeSet};

use crate::guest::{Guest, Output};

/// How often what happened, over all seeds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub(crate) outputs: u64,
    pub(crate) replays: u64,
    pub(crate) released: u64,
    pub(crate) protected: u64,
    pub(crate) applied: u64,
    pub(crate) takeovers: u64,
    pub(crate) ran_alone: u64,
    pub(crate) fenced: u64,
    pub(crate) discarded: u64,
    pub(crate) renounced: u64,
    pub(crate) garbled: u64,
    pub(crate) torn: u64,
    pub(crate) not_applicable: u64,
    pub(crate) verified: u64,
    pub(crate) operator_waits: u64,
    pub(crate) unreachable: u64,
    pub(crate) reprotected: u64,
}

impl Tally {
    fn fields(&self) -> [u64; 17] {
        [
            self.outputs,
            self.replays,
            self.released,
            self.protected,
            self.applied,
            self.takeovers,
            self.ran_alone,
            self.fenced,
            self.discarded,
            self.renounced,
            self.garbled,
            self.torn,
            self.not_applicable,
            self.verified,
            self.operator_waits,
            self.unreachable,
            self.reprotected,
        ]
    }

    /// Adds what happened in another world.
    pub fn add(&mut self, other: &Self) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q] = other.fields();
        self.outputs += a;
        self.replays += b;
        self.released += c;
        self.protected += d;
        self.applied += e;
        self.takeovers += f;
        self.ran_alone += g;
        self.fenced += h;
        self.discarded += i;
        self.renounced += j;
        self.garbled += k;
        self.torn += l;
        self.not_applicable += m;
        self.verified += n;
        self.operator_waits += o;
        self.unreachable += p;
        self.reprotected += q;
    }

    /// What never happened was not tested.
    ///
    /// # Panics
    /// When something never happened.
    pub fn assert_all_happened(&self) {
        assert!(self.fields().iter().all(|count| *count > 0), "some never happened: {self:?}");
    }
}

#[derive(Default)]
pub(crate) struct Judge {
    pub(crate) tally: Tally,
    /// Who holds which term: the arbiter's book.
    pub(crate) terms: BTreeMap<u64, usize>,
    /// Who has acted in which term.
    active: BTreeMap<u64, usize>,
    /// Acknowledgements that a standby has sent, by term and epoch.
    acknowledged: BTreeSet<(u64, u64)>,
    /// What was sealed, by term and epoch.
    sealed: BTreeMap<(u64, u64), Guest>,
    /// What the outside has seen.
    seen: Vec<Output>,
}

impl Judge {
    /// Grants a term to the first who asks.
    pub(crate) fn claim(&mut self, term: u64, node: usize) -> usize {
        *self.terms.entry(term).or_insert(node)
    }

    /// The fence: nobody has won a later term.
    pub(crate) fn may_perform(&self, term: u64) -> bool {
        self.terms.keys().next_back().is_none_or(|last| *last <= term)
    }

    /// P2: a term is one node's, and that node has won it.
    pub(crate) fn acts(&mut self, term: u64, node: usize) {
        let first = *self.active.entry(term).or_insert(node);
        assert_eq!(first, node, "P2: two machines act in term {term}");
        assert_eq!(self.terms.get(&term), Some(&node), "P2: term {term} was not won");
    }

    pub(crate) fn acknowledges(&mut self, term: u64, epoch: u64) {
        assert!(self.sealed.contains_key(&(term, epoch)), "P4: ({term}, {epoch}) never sealed");
        self.acknowledged.insert((term, epoch));
    }

    /// P1: what is released was acknowledged before.
    pub(crate) fn releases(&mut self, term: u64, epoch: u64) {
        let known = self.acknowledged.contains(&(term, epoch));
        assert!(known, "P1: epoch {epoch} of term {term} released, but never acknowledged");
        self.tally.released += 1;
    }

    pub(crate) fn seals(&mut self, term: u64, epoch: u64, guest: Guest) {
        assert!(self.sealed.insert((term, epoch), guest).is_none(), "epoch {epoch} sealed twice");
    }

    /// P4: what is applied is what was sealed.
    pub(crate) fn applies(&mut self, term: u64, epoch: u64, guest: &Guest) {
        let sealed = &self.sealed[&(term, epoch)];
        assert!(
            sealed.memory == guest.memory && sealed.registers == guest.registers,
            "P4: epoch {epoch} of term {term} is not what was sealed"
        );
        self.tally.applied += 1;
    }

    /// What the outside sees must be the output of one machine that never failed: each output
    /// once and in order, but for repetitions of what was in flight at a takeover.
    pub(crate) fn sees(&mut self, output: Output, replay: bool) {
        self.tally.outputs += 1;
        let last = self.seen.last().copied();
        if last.is_some_and(|last| output.serial <= last.serial) {
            assert_eq!(output, self.seen[output.serial as usize - 1], "P1: history was rewritten");
            assert!(replay, "P1: {output:?} was repeated without a takeover");
            self.tally.replays += 1;
            return;
        }
        let (serial, history) = last.map_or((0, 0), |last| (last.serial, last.history));
        assert_eq!(output.serial, serial + 1, "P1: an output was lost");
        assert_eq!(output.after, history, "P1: what was seen was rolled back");
        self.seen.push(output);
    }
}
