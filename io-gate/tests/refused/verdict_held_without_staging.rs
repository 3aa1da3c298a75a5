//! A token is not yet an effect: without `stage` there is no verdict.

use io_gate::{Gate, NetTx, Verdict};

pub fn process<'e>(gate: &mut Gate<'e>) -> Verdict<'e> {
    gate.token::<NetTx>()
}

fn main() {}
