//! A device has the gate, and no access to the ledger behind the gate.

use io_gate::Gate;

pub fn process(gate: &mut Gate<'_>) {
    let _ = gate.ledger.take_ready();
}

fn main() {}
