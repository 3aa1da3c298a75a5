//! The arbiter grants the right to run alone: the number of a term does not give it.

use io_gate::host::{Alone, Ledger, Term};

pub fn seize(ledger: &mut Ledger) {
    let _ = ledger.run_alone(Alone { term: Term(3) });
}

fn main() {}
