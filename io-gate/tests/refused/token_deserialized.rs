//! A token is a right, not data: it cannot be read from bytes.

use io_gate::{ConsoleTx, EffectToken, Port};

pub fn forge(bytes: &[u8]) {
    let token: EffectToken<'_, '_, ConsoleTx> = postcard::from_bytes(bytes).unwrap();
    token.emit(Port(0), b"from bytes".to_vec());
}

fn main() {}
