//! Reads a token from saved state.

use io_gate::{ConsoleTx, EffectToken, Port};
use serde::{Deserialize, Deserializer};

pub(crate) fn forge<'de, D: Deserializer<'de>>(saved: D) -> Result<(), D::Error> {
    let token = EffectToken::<'_, '_, ConsoleTx>::deserialize(saved)?;
    token.emit(Port(0), b"from bytes".to_vec());
    Ok(())
}
