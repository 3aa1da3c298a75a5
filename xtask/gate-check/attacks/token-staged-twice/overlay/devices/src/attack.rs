//! Spends one token on two effects.

use io_gate::{Chain, DeviceError, Gate, NetTx, Port, Verdict};

pub(crate) fn transmit<'e>(
    chain: &mut Chain<'_>,
    gate: &mut Gate<'e>,
) -> Result<Verdict<'e>, DeviceError> {
    let frame = chain.take_payload(chain.readable())?;
    let token = gate.token::<NetTx>();
    let _ = token.stage(Port(0), frame.clone());
    Ok(token.stage(Port(0), frame))
}
