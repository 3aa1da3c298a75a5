//! The reset of a device: its driver takes its memory back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use io_gate::host::{EffectId, Ledger, Performable};

use super::{GateHost, RESET_PATIENCE};
use crate::backend::Attached;
use crate::completion::Kind;
use crate::lane::Lane;

impl GateHost {
    /// Ends the chains of a slot whose driver has reset its device. Afterwards none of its chains
    /// is in flight and nothing writes their memory; if this returns `true`, nothing reads it
    /// either.
    ///
    /// Released effects are performed first, within [`RESET_PATIENCE`]; reads are not waited for.
    /// Effects not begun by then are dropped, which to the driver looks like a slower device. A
    /// system call that reads the driver's memory is waited for as long again (P9).
    #[must_use]
    pub(crate) fn forget_chains(&self, slot: u16) -> bool {
        let lanes = self.of_slot(slot);
        self.forget(slot, &lanes, Lane::give_up_reads, Ledger::cancel_chains_of);
        // All released effects are queued in lanes by now, and the caller stages no new ones. No
        // lock is held.
        let until = Instant::now() + RESET_PATIENCE;
        lanes.iter().for_each(|backend| backend.lane().wait_for_effects(until));
        self.forget(slot, &lanes, Lane::give_up_chains, Ledger::abandon_chains_of);
        self.lets_go_of_memory(slot, RESET_PATIENCE)
    }

    fn forget(
        &self,
        slot: u16,
        lanes: &[Arc<Attached>],
        give_up: fn(&Lane) -> Vec<Performable>,
        cancel: fn(&mut Ledger, u16) -> Vec<EffectId>,
    ) {
        let _performer = self.performer();
        // Give up queued requests first, so that none of them is reported as performed after it is
        // cancelled.
        let given_up: Vec<Performable> =
            lanes.iter().flat_map(|backend| give_up(backend.lane())).collect();
        let mut ledger = self.far_side.ledger();
        self.tell_cancelled(&cancel(&mut ledger, slot));
        given_up.into_iter().for_each(|request| ledger.settle(request));
        for completion in self.far_side.take_completions_of(slot) {
            if let Kind::Performed(done) = completion.0 {
                ledger.settle(done.request);
            }
        }
        self.far_side.take_up(ledger);
    }

    /// Waits a while until no system call for an earlier request reads the memory that the driver
    /// owns again. Returns whether that is so.
    pub(crate) fn lets_go_of_memory(&self, slot: u16, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        self.of_slot(slot).iter().all(|backend| backend.lane().lets_go_of_memory(until))
    }
}
