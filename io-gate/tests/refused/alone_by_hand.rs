//! The right to run alone is won from the arbiter; knowing the term is not having it.

use io_gate::host::{Alone, Ledger, Term};

pub fn seize(ledger: &mut Ledger) {
    let _ = ledger.run_alone(Alone { term: Term(3) });
}

fn main() {}
