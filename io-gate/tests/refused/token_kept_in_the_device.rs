//! A token belongs to the call in which it was issued. If a device kept it, the effect could leave
//! with a later epoch, and be missing from the epoch that caused it.

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
