//! From a device's call to the lanes: copies held payloads, and queues released requests.
//!
//! Effects of one backend are performed in the order of their release (P1): `performer` is held
//! while effects are released and queued for a lane.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use io_gate::host::{EffectId, EffectOp, InputOp, Ledger, OwnOp, Performable, Request};
use io_gate::{Outcome, Port};

use super::GateHost;
use crate::attached::Attached;
use crate::completion::{Completion, Kind, Performed};
use crate::entropy;
use crate::far_side::signal;
use crate::guest_memory::copy_out;
use crate::observer::Noted;
use crate::poisoned::POISONED;

/// A backend, its place, and its part of a batch.
type Share = ((u16, Port), Arc<Attached>, Vec<Performable>);

impl GateHost {
    /// Ends the staging under one hold of the ledger's lock. Copies held payloads, so that the
    /// guest cannot change them any more (P1). Hands over what may leave at once. Returns
    /// completions of the `own` slot, since the caller owns that slot.
    pub(crate) fn end_staging(
        &self,
        mut ledger: MutexGuard<'_, Ledger>,
        own: u16,
    ) -> Vec<Performed> {
        if ledger.holds() && ledger.held() > 0 {
            self.copy_held(&mut ledger);
        }
        let own_disks = if ledger.has_own() { self.record_own(&mut ledger) } else { Vec::new() };
        let ready = ledger.has_ready();
        drop(ledger);
        if !own_disks.is_empty() {
            self.perform_own(own_disks);
        }
        if ready { self.flush(own) } else { Vec::new() }
    }

    fn copy_held(&self, ledger: &mut Ledger) {
        let mut staged = Vec::new();
        let observer = self.far_side.observer();
        let mut noted = Vec::new();
        ledger.copy_held(|record| {
            staged.push(record.id);
            if observer.is_some() {
                noted.extend(Noted::of(record));
            }
            let Request::Effect(op) = &record.request else { return None };
            let ranges = op.payload()?.guest_ranges()?;
            copy_out(&self.far_side.memory, ranges).ok()
        });
        if staged.is_empty() {
            return;
        }
        if let Some(observer) = observer {
            // `copy_held` visits the newest first.
            noted.reverse();
            observer.staged(&noted);
        }
        let now = Instant::now();
        let mut latencies = self.latencies.lock().expect(POISONED);
        staged.iter().rev().for_each(|id| latencies.staged(*id, now));
        drop(latencies);
        if !self.held_signalled.swap(true, Ordering::AcqRel) {
            signal(&self.held_event);
        }
    }

    fn flush(&self, own: u16) -> Vec<Performed> {
        let performer = self.performer();
        let mut ledger = self.far_side.ledger();
        let batch = ledger.take_ready();
        self.tell_staged(&batch);
        drop(ledger);
        let mut own_done = Vec::new();
        for done in self.hand_over(&performer, batch) {
            if done.request.record().origin.slot() == own {
                own_done.push(done);
            } else {
                self.far_side.post(Completion(Kind::Performed(done)));
            }
        }
        own_done
    }

    pub(super) fn hand_over_all(&self, performer: &MutexGuard<'_, ()>, batch: Vec<Performable>) {
        for done in self.hand_over(performer, batch) {
            self.far_side.post(Completion(Kind::Performed(done)));
        }
    }

    /// Hands requests to their lanes. Each lane gets its part of the batch in one piece (P1: the
    /// order of release is the order of performing). Requests without a lane are done here, and
    /// returned if a chain waits for them.
    fn hand_over(
        &self,
        _: &MutexGuard<'_, ()>,
        batch: Vec<Performable>,
    ) -> impl Iterator<Item = Performed> {
        let mut done = Vec::new();
        let mut power = Vec::new();
        let mut lanes: Vec<Share> = Vec::new();
        for request in batch {
            let record = request.record();
            let port = match &record.request {
                Request::Effect(EffectOp::Power(_)) => {
                    power.push(request);
                    continue;
                }
                Request::Input(InputOp::Entropy { into }) => {
                    let (outcome, data) = entropy::read(&self.far_side.memory, into);
                    done.push(Performed { request, outcome, data });
                    continue;
                }
                Request::Input(InputOp::BlockRead { port, .. }) => Some(*port),
                Request::Effect(op) | Request::Own(OwnOp { op, .. }) => op.port(),
            };
            let place = port.map(|port| (record.origin.slot(), port));
            // Look a backend up once: most requests of a batch are for one backend.
            if let Some((.., jobs)) = lanes.iter_mut().find(|(of, ..)| Some(*of) == place) {
                jobs.push(request);
                continue;
            }
            match place.and_then(|place| Some((place, self.backend(place.0, place.1)?))) {
                Some((place, backend)) => lanes.push((place, backend, vec![request])),
                None => {
                    if let (Some(observer), Some(effect)) =
                        (self.far_side.observer(), Noted::of(record))
                    {
                        observer.returned(effect);
                    }
                    let outcome = Outcome::Unsupported;
                    done.push(Performed { request, outcome, data: Vec::new() });
                }
            }
        }
        lanes.into_iter().for_each(|(_, backend, jobs)| backend.lane().push(jobs));
        self.power.push(power);
        let far_side = self.far_side.clone();
        done.into_iter().filter_map(move |done| far_side.settle_detached(done))
    }

    /// Reports effects that pass an open gate to the observer. The caller holds the ledger's lock,
    /// so that the report comes before those of later effects.
    pub(super) fn tell_staged(&self, batch: &[Performable]) {
        let Some(observer) = self.far_side.observer() else { return };
        let own = batch.iter().filter(|request| !request.is_replay());
        let effects: Vec<Noted> = own.filter_map(|request| Noted::of(request.record())).collect();
        observer.staged(&effects);
    }

    pub(super) fn tell_cancelled(&self, effects: &[EffectId]) {
        if let Some(observer) = self.far_side.observer() {
            observer.cancelled(effects);
        }
    }

    pub(super) fn note_released(&self, batch: &[Performable]) {
        let now = Instant::now();
        let mut latencies = self.latencies.lock().expect(POISONED);
        batch.iter().for_each(|request| latencies.released(request.record(), now));
    }
}
