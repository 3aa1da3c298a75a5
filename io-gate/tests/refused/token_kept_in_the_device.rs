//! A token belongs to the stretch of execution in which it was issued. Kept past the call, its
//! effect would leave with another, and be missing from the one that caused it.

use io_gate::{EffectToken, Gate, NetTx};

pub struct Hoarder {
    for_later: Option<EffectToken<'static, 'static, NetTx>>,
}

impl Hoarder {
    pub fn process(&mut self, gate: &mut Gate<'_>) {
        self.for_later = Some(gate.token::<NetTx>());
    }
}

fn main() {}
