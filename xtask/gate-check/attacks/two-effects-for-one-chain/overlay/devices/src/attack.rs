//! Stages two effects for one chain, so that the driver gets its answer after one of them.

use io_gate::{BlockFlush, DeviceError, Gate, Port, Verdict};

/// Flushes two disks, and waits for one of them.
pub fn process<'e>(gate: &mut Gate<'e>) -> Result<Verdict<'e>, DeviceError> {
    let _ = gate.token::<BlockFlush>().stage(Port(0));
    Ok(gate.token::<BlockFlush>().stage(Port(1)))
}
