//! One token, one effect: it can be neither cloned nor copied.

use io_gate::{ConsoleTx, Gate, Port};

pub fn process(gate: &mut Gate<'_>) {
    let token = gate.token::<ConsoleTx>();
    token.clone().emit(Port(0), b"one".to_vec());
    token.emit(Port(0), b"two".to_vec());
}

fn main() {}
