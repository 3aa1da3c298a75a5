//! Takes a token in one call, and spends it in another.

use io_gate::{EffectToken, Gate, NetTx};

pub(crate) struct Hoarder {
    later: Option<EffectToken<'static, 'static, NetTx>>,
}

impl Hoarder {
    pub(crate) fn process(&mut self, gate: &mut Gate<'_>) {
        self.later = Some(gate.token::<NetTx>());
    }
}
