//! Reports a flush as done that is only staged: this breaks P3.

use io_gate::{BlockFlush, DeviceError, Gate, Port, Verdict};

/// Stages a flush, and does not wait for it.
pub fn process<'e>(gate: &mut Gate<'e>) -> Result<Verdict<'e>, DeviceError> {
    let _ = gate.token::<BlockFlush>().stage(Port(0));
    Ok(Verdict::Done(0))
}
