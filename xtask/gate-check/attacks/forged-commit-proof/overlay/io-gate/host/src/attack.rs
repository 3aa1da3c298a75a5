//! Releases effects before any acknowledgement.

use io_gate::host::{Committed, Epoch, Ledger, Performable};

pub(crate) fn hurry(ledger: &mut Ledger) -> Vec<Performable> {
    let proof = Committed { epoch: Epoch(u64::MAX), gate: unreachable!() };
    ledger.release(proof)
}
