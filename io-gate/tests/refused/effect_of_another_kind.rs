//! A token is for one kind of effect: a flush token cannot stage a write.

use io_gate::{BlockFlush, Chain, DeviceError, Gate, Port, Verdict};

pub fn process<'e>(
    chain: &mut Chain<'_>,
    gate: &mut Gate<'e>,
) -> Result<Verdict<'e>, DeviceError> {
    let data = chain.take_payload(512)?;
    Ok(gate.token::<BlockFlush>().stage(Port(0), 0, data))
}

fn main() {}
