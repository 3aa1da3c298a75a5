//! Has the driver told after the first of two effects.

use io_gate::{BlockFlush, DeviceError, Gate, Port, Verdict};

/// Flushes two disks, and waits for one.
pub fn process<'e>(gate: &mut Gate<'e>) -> Result<Verdict<'e>, DeviceError> {
    let _ = gate.token::<BlockFlush>().stage(Port(0));
    Ok(gate.token::<BlockFlush>().stage(Port(1)))
}
