//! Answers for its own chain with an effect of another device.

use io_gate::{EffectToken, Gate, NetTx, Payload, Port, Verdict};

pub(crate) fn answer<'mine, 'other>(
    _gate: &mut Gate<'mine>,
    borrowed: EffectToken<'_, 'other, NetTx>,
    frame: Payload<'_>,
) -> Verdict<'mine> {
    borrowed.stage(Port(0), frame)
}
