//! A token borrows the gate: a device spends one right before it asks for the next.

use io_gate::{ConsoleTx, Gate, Port};

pub fn process(gate: &mut Gate<'_>) {
    let first = gate.token::<ConsoleTx>();
    let second = gate.token::<ConsoleTx>();
    second.emit(Port(0), b"second".to_vec());
    first.emit(Port(0), b"first".to_vec());
}

fn main() {}
