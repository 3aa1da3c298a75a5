//! A proof is spent by value: it opens the gate once.

use io_gate::host::{Committed, Ledger};

pub fn release(ledger: &mut Ledger, proof: Committed) {
    let _ = ledger.release(proof);
    let _ = ledger.release(proof);
}

fn main() {}
