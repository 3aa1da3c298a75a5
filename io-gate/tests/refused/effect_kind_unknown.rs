//! The gate issues tokens for the kinds of effect that it knows.

use std::fs::File;

use io_gate::Gate;

pub fn process(gate: &mut Gate<'_>) {
    let _ = gate.token::<File>();
}

fn main() {}
