//! A token has no default value: only the gate issues tokens.

use io_gate::{ConsoleTx, EffectToken, Port};

pub fn forge() {
    let token: EffectToken<'_, '_, ConsoleTx> = Default::default();
    token.emit(Port(0), b"from nowhere".to_vec());
}

fn main() {}
