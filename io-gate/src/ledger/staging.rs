//! Requests of devices enter the ledger: effects for their tokens, and inputs.

use alloc::sync::Arc;

use super::{Held, InFlight, Ledger, carried};
use crate::effect::{EffectId, EffectOp, InputOp, Origin, Record, Request};
use crate::load::Weight;
use crate::performable::Performable;

/// Maximum number of bytes of console output that are merged into one effect. Only output for which
/// no chain waits is merged.
const MAX_MERGED: usize = 4096;

impl Ledger {
    pub(crate) fn count_issued(&mut self) {
        self.counts.issued += 1;
        self.tokens_out += 1;
    }

    pub(crate) fn count_returned(&mut self) {
        self.tokens_out -= 1;
        self.counts.returned += 1;
    }

    pub(crate) fn stage(&mut self, origin: Origin, op: EffectOp) {
        assert!(self.tokens_out > 0, "P5: an effect without a token");
        self.tokens_out -= 1;
        if self.own.takes(origin.slot(), &op) {
            return self.stage_own(origin, op);
        }
        if let Origin::Detached { slot } = origin {
            if self.merge(slot, &op) {
                self.counts.merged += 1;
                return;
            }
            self.detached.insert(slot, EffectId(self.next_id));
        }
        self.counts.staged += 1;
        let epoch = self.epoch;
        let record = self.record(origin, Request::Effect(op));
        self.held_bytes += carried(&record);
        let id = record.id;
        self.held.push_back(Held { id, epoch, copy: None, copied: false, replay: false });
    }

    /// Merges `op` into the newest detached effect of the slot, if that effect has not left.
    /// Returns whether it has merged. So a guest that writes to a console byte by byte takes little
    /// more memory than the bytes, and repeated resets take none. Bytes are never added to an
    /// effect of a sealed epoch (P1).
    fn merge(&mut self, slot: u16, op: &EffectOp) -> bool {
        let Some(id) = self.detached.get(&slot) else { return false };
        if self.held.binary_search_by_key(id, |held| held.id).is_err() {
            return false;
        }
        let Some(InFlight { record, weight, .. }) = self.in_flight.get_mut(id) else {
            return false;
        };
        // The record has one owner until it leaves.
        let Some(record) = Arc::get_mut(record) else { return false };
        match (&mut record.request, op) {
            (Request::Effect(EffectOp::Power(held)), EffectOp::Power(event)) => held == event,
            (
                Request::Effect(EffectOp::ConsoleTx { port: to, bytes: held }),
                EffectOp::ConsoleTx { port, bytes },
            ) if to == port && record.epoch == self.epoch => {
                let Some(more) = bytes.inline_bytes() else { return false };
                if !held.extend(more, MAX_MERGED) {
                    return false;
                }
                let more = Weight::carried(more.len());
                *weight += more;
                self.held_bytes += bytes.len();
                self.load.add(slot, more);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn request_input(&mut self, origin: Origin, op: InputOp) {
        let record = self.record(origin, Request::Input(op));
        self.ask(self.input(record, false));
    }

    /// Queues an input: a read of an own disk keeps its place among the operations.
    pub(super) fn ask(&mut self, input: Performable) {
        if self.own.has(&input.record) {
            self.own.ask(input);
        } else {
            self.inputs.push_back(input);
        }
    }

    pub(super) fn input(&self, record: Arc<Record>, replay: bool) -> Performable {
        Performable { gate: self.gate, record, copy: None, replay }
    }

    pub(super) fn record(&mut self, origin: Origin, request: Request) -> Arc<Record> {
        let id = EffectId(self.next_id);
        self.next_id += 1;
        let record = Arc::new(Record { id, epoch: self.epoch, origin, request });
        self.enter(record.clone(), false);
        record
    }

    /// Adds a request to those in flight. Its weight counts until it is settled or cancelled.
    pub(super) fn enter(&mut self, record: Arc<Record>, replay: bool) {
        let (id, weight) = (record.id, Weight::of(&record));
        self.load.add(record.origin.slot(), weight);
        self.in_flight.insert(id, InFlight { record, replay, weight });
    }
}
