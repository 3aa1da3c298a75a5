//! A token is the right to one effect. Staging takes it by value: it cannot be staged again.

use io_gate::{Chain, DeviceError, Gate, NetTx, Port, Verdict};

pub fn transmit<'e>(
    chain: &mut Chain<'_>,
    gate: &mut Gate<'e>,
) -> Result<Verdict<'e>, DeviceError> {
    let frame = chain.take_payload(chain.readable())?;
    let token = gate.token::<NetTx>();
    let _ = token.stage(Port(0), frame.clone());
    Ok(token.stage(Port(0), frame))
}

fn main() {}
