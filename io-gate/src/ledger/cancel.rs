//! Requests that are not to be performed leave the ledger: those that have not left yet are
//! dropped, and the others are abandoned.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::{Ledger, carried};
use crate::effect::{EffectId, EffectOp, Origin, PowerEvent, Record, Request};

impl Ledger {
    /// Drops all effects that have not left: the machine was reset, or lost the right to perform.
    /// Returns their ids.
    pub fn cancel_held(&mut self) -> Vec<EffectId> {
        self.cancel_where(|record| matches!(record.request, Request::Effect(_)))
    }

    /// Drops resets of the machine that have not left: the machine has just been reset, so their
    /// cause is gone. A power-off stays, since it was requested and has not happened. Returns the
    /// ids of the dropped effects.
    pub fn cancel_resets(&mut self) -> Vec<EffectId> {
        let reset = Request::Effect(EffectOp::Power(PowerEvent::Reset));
        self.cancel_where(|record| record.request == reset)
    }

    /// Drops the requests of a slot's descriptor chains that have not left: the driver has reset
    /// the device and owns their memory again. Returns the ids of the dropped effects.
    pub fn cancel_chains_of(&mut self, slot: u16) -> Vec<EffectId> {
        self.cancel_where(
            |record| matches!(record.origin, Origin::Chain { slot: of, .. } if of == slot),
        )
    }

    /// Abandons the requests of a slot's descriptor chains that are still in flight, after
    /// [`cancel_chains_of`](Self::cancel_chains_of) has dropped those that have not left.
    /// Checkpoints no longer contain them: a takeover would perform them from memory that the
    /// driver has since reused. Settling them later changes nothing for the guest. Returns the ids
    /// of the effects.
    pub fn abandon_chains_of(&mut self, slot: u16) -> Vec<EffectId> {
        self.abandon(|record| matches!(record.origin, Origin::Chain { slot: of, .. } if of == slot))
    }

    /// Abandons resets of the machine that have left but were not performed: the machine has just
    /// been reset. Returns the ids of the effects.
    pub fn abandon_resets(&mut self) -> Vec<EffectId> {
        let reset = Request::Effect(EffectOp::Power(PowerEvent::Reset));
        let held: BTreeSet<EffectId> = self.held.iter().map(|held| held.id).collect();
        self.abandon(|record| record.request == reset && !held.contains(&record.id))
    }

    /// Abandons the selected requests in flight. Returns the ids of the effects among them.
    fn abandon(&mut self, which: impl Fn(&Record) -> bool) -> Vec<EffectId> {
        let ids: Vec<EffectId> = self
            .in_flight
            .values()
            .filter(|entry| which(&entry.record))
            .map(|entry| entry.record.id)
            .collect();
        let mut effects = Vec::new();
        for id in ids {
            let Some(entry) = self.in_flight.remove(&id) else { continue };
            self.abandoned.insert(id, (entry.record.origin.slot(), entry.weight));
            match entry.record.request {
                Request::Effect(_) => {
                    self.counts.cancelled += 1;
                    effects.push(id);
                }
                // R10: the list keeps the operation, and it is performed on both sides.
                Request::Own(_) => self.counts.own.cancelled += 1,
                Request::Input(_) => {}
            }
        }
        effects
    }

    pub(crate) fn waiting_since(
        &self,
        first: EffectId,
        origin: Origin,
    ) -> impl Iterator<Item = EffectId> + '_ {
        self.in_flight
            .range(first..)
            .filter(move |(_, entry)| entry.record.origin == origin)
            .map(|(id, _)| *id)
    }

    /// Drops the selected requests that have not left. Returns the ids of the effects among them,
    /// oldest first.
    fn cancel_where(&mut self, mut drops: impl FnMut(&Record) -> bool) -> Vec<EffectId> {
        let Self { held, inputs, own, in_flight, .. } = self;
        let mut ids = Vec::new();
        held.retain(|held| {
            let dropped = in_flight.get(&held.id).is_some_and(|entry| drops(&entry.record));
            ids.extend(dropped.then_some(held.id));
            !dropped
        });
        let effects = ids.len();
        inputs.retain(|input| {
            let dropped = drops(&input.record);
            ids.extend(dropped.then_some(input.record.id));
            !dropped
        });
        ids.extend(own.cancel(|id| in_flight.get(&id).is_some_and(|entry| drops(&entry.record))));
        ids.iter().for_each(|id| self.forget(*id));
        ids.truncate(effects);
        ids
    }

    /// Drops the requests that `origin` has made since `first`. Only the newest entries are
    /// searched.
    pub(crate) fn cancel_since(&mut self, first: EffectId, origin: Origin) {
        let waiting: Vec<EffectId> = self.waiting_since(first, origin).collect();
        let held = self.held.partition_point(|held| held.id < first);
        let inputs = self.inputs.partition_point(|input| input.record.id < first);
        let keeps = |id: EffectId| !waiting.contains(&id);
        let newest = self.held.split_off(held);
        self.held.extend(newest.into_iter().filter(|held| keeps(held.id)));
        let newest = self.inputs.split_off(inputs);
        self.inputs.extend(newest.into_iter().filter(|input| keeps(input.record.id)));
        self.own.cancel_since(first, |id| !keeps(id));
        waiting.iter().for_each(|id| self.forget(*id));
    }

    /// Removes a request from those in flight. The caller has already taken it out of `held`,
    /// `inputs` or `own`.
    fn forget(&mut self, id: EffectId) {
        let Some(entry) = self.in_flight.remove(&id) else { return };
        self.load.remove(entry.record.origin.slot(), entry.weight);
        match entry.record.request {
            Request::Effect(_) => {
                self.held_bytes -= carried(&entry.record);
                self.counts.cancelled += 1;
            }
            Request::Own(_) => self.counts.own.cancelled += 1,
            Request::Input(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::chain::Payload;
    use crate::effect::{BlockWrite, Port};
    use crate::ledger::new_gate;
    use crate::load::Weight;

    /// P9: `cancel_where` checks each request once, however many are held. A side that loses the
    /// right to perform must not hold the ledger's lock for long.
    #[test]
    fn p9_dropping_looks_at_each_request_once() {
        const HELD: u64 = 40_000;
        let (mut ledger, _authority) = new_gate();
        for number in 0..HELD {
            let origin = Origin::Chain { slot: (number % 2) as u16, queue: 0, head: 0 };
            let staged = ledger.chain_session(origin, |gate| {
                let data = Payload::inline(vec![0; 512]);
                Ok(gate.token::<BlockWrite>().stage(Port(0), number, data))
            });
            assert!(staged.is_ok());
        }
        let mut looks = 0;
        let dropped = ledger.cancel_where(|record| {
            looks += 1;
            record.origin.slot() == 1
        });
        assert_eq!((looks, dropped.len() as u64), (HELD, HELD / 2));
        assert!(dropped.is_sorted());
        assert_eq!(ledger.cancel_held().len() as u64, HELD / 2);
        assert_eq!((ledger.load(), ledger.held_bytes()), (Weight::default(), 0));
        ledger.seal();
    }
}
