//! Tokens come from `Gate::token`, where they are counted.

use io_gate::{EffectToken, NetTx, Payload, Port, Verdict};

pub fn forge<'e>(frame: Payload<'_>) -> Verdict<'e> {
    let token = EffectToken::<NetTx> { spent: false };
    token.stage(Port(0), frame)
}

fn main() {}
