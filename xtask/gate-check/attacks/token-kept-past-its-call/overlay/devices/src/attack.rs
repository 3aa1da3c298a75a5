//! Takes a token when it may, and spends it when it likes.

use io_gate::{EffectToken, Gate, NetTx};

pub(crate) struct Hoarder {
    later: Option<EffectToken<'static, 'static, NetTx>>,
}

impl Hoarder {
    pub(crate) fn process(&mut self, gate: &mut Gate<'_>) {
        self.later = Some(gate.token::<NetTx>());
    }
}
