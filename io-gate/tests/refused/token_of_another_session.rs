//! A verdict answers for the chain of its own session: a token of another device, or of another
//! call, cannot stand in for it.

use io_gate::{EffectToken, Gate, NetTx, Payload, Port, Verdict};

pub fn answer_for<'mine, 'other>(
    _gate: &mut Gate<'mine>,
    token: EffectToken<'_, 'other, NetTx>,
    frame: Payload<'_>,
) -> Verdict<'mine> {
    token.stage(Port(0), frame)
}

fn main() {}
