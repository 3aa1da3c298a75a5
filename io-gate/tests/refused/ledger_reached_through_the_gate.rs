//! A device has the gate, not what is behind it.

use io_gate::Gate;

pub fn process(gate: &mut Gate<'_>) {
    let _ = gate.ledger.take_ready();
}

fn main() {}
