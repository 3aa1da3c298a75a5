//! The reset of a device: its driver takes its memory back, so no request may use that memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use io_gate::host::{EffectId, Ledger, Performable};

use super::{GateHost, RESET_PATIENCE};
use crate::attached::Attached;
use crate::completion::Kind;
use crate::lane::Lane;

impl GateHost {
    /// Ends the chains of a slot whose driver has reset its device. Afterwards no chain of the slot
    /// is in flight, and nothing writes to their memory. If this returns `true`, nothing reads it
    /// either.
    ///
    /// Released effects are performed first, within [`RESET_PATIENCE`]. Reads are not waited for.
    /// Effects that have not begun by then are dropped: to the driver, the device was slower. If a
    /// system call reads the driver's memory, this waits as long again for its end (P9).
    #[must_use]
    pub(crate) fn forget_chains(&self, slot: u16) -> bool {
        let lanes = self.of_slot(slot);
        self.forget(slot, &lanes, Lane::give_up_reads, Ledger::cancel_chains_of);
        // Wait without a lock. All released effects are in lanes by now, and the caller stages no
        // new ones.
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
        // Give up queued requests before cancelling them in the ledger, so that no lane reports a
        // cancelled one as performed.
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

    /// Waits, for at most `patience`, until no system call for an earlier request reads memory that
    /// the driver owns again. Returns whether none does.
    pub(crate) fn lets_go_of_memory(&self, slot: u16, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        self.of_slot(slot).iter().all(|backend| backend.lane().lets_go_of_memory(until))
    }
}
