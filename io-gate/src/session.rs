//! Sessions: the gate is lent to a device for one call, and the token counts are checked when the
//! call ends (P5).

use crate::chain::GuestBytes;
use crate::device::DeviceError;
use crate::effect::{EffectId, Origin};
use crate::gate::Gate;
use crate::ledger::Ledger;
use crate::verdict::Verdict;

/// What became of a descriptor chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainOutcome {
    /// It goes back to the driver, with this many bytes written.
    Done(u32),
    /// It goes back when this request is settled.
    Waiting(EffectId),
}

impl Ledger {
    /// Lends the gate for one descriptor chain and returns what became of the chain.
    ///
    /// # Errors
    /// The device's error when the chain is not valid for it.
    ///
    /// # Panics
    /// When the device breaks the gate's invariants: it neither stages nor drops a token
    /// (`mem::forget`), or its verdict does not match its requests.
    pub fn chain_session(
        &mut self,
        origin: Origin,
        call: impl for<'e> FnOnce(&mut Gate<'e>) -> Result<Verdict<'e>, DeviceError>,
    ) -> Result<ChainOutcome, DeviceError> {
        let first = self.next_id();
        let verdict = call(&mut Gate::new(self, origin, None)).map(|verdict| match verdict {
            Verdict::Done(len) => Some(len),
            Verdict::Held(_) | Verdict::Pending(_) => None,
        });
        self.assert_tokens_balanced();
        match verdict {
            Ok(Some(len)) => {
                let waiting = self.waiting_since(first, origin).count();
                assert!(waiting == 0, "P5: a chain was reported as done with {waiting} in flight");
                Ok(ChainOutcome::Done(len))
            }
            Ok(None) => {
                let mut waiting = self.waiting_since(first, origin);
                match (waiting.next(), waiting.next()) {
                    (Some(id), None) => Ok(ChainOutcome::Waiting(id)),
                    (one, more) => {
                        panic!("P5: a chain must wait for one request, not {one:?}, {more:?}")
                    }
                }
            }
            Err(error) => {
                self.cancel_since(first, origin);
                Err(error)
            }
        }
    }

    /// Lends the gate for a register access or for input. No chain waits for the effects.
    ///
    /// # Panics
    /// As [`chain_session`](Self::chain_session).
    pub fn detached_session<R>(
        &mut self,
        slot: u16,
        call: impl for<'e> FnOnce(&mut Gate<'e>) -> R,
    ) -> R {
        self.session(slot, None, call)
    }

    /// As [`detached_session`](Self::detached_session), and lends guest memory too: only for a
    /// device that masters the bus.
    ///
    /// # Panics
    /// As [`chain_session`](Self::chain_session).
    pub fn bus_master_session<R>(
        &mut self,
        slot: u16,
        memory: &dyn GuestBytes,
        call: impl for<'e> FnOnce(&mut Gate<'e>) -> R,
    ) -> R {
        self.session(slot, Some(memory), call)
    }

    fn session<R>(
        &mut self,
        slot: u16,
        memory: Option<&dyn GuestBytes>,
        call: impl for<'e> FnOnce(&mut Gate<'e>) -> R,
    ) -> R {
        let result = call(&mut Gate::new(self, Origin::Detached { slot }, memory));
        self.assert_tokens_balanced();
        result
    }
}
