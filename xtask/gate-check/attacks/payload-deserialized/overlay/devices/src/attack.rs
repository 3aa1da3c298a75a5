//! Sends any memory of the guest, whether a chain has lent it or not.

use io_gate::{Gate, NetTx, Payload, Port, Verdict};
use serde::{Deserialize, Deserializer};

pub(crate) fn exfiltrate<'e, 'de, D: Deserializer<'de>>(
    address_and_length: D,
    gate: &mut Gate<'e>,
) -> Result<Verdict<'e>, D::Error> {
    let anywhere = Payload::deserialize(address_and_length)?;
    Ok(gate.token::<NetTx>().stage(Port(0), anywhere))
}
