//! A driver's write to the configuration space of a device: a call of the far side.

use crate::config::ConfigWrite;
use crate::device::Device;
use crate::gate::Gate;

/// Hands a driver's write to a device. Bytes outside of the fields that the driver may write are
/// dropped. If all are, the device is not called.
pub fn write_config(device: &mut dyn Device, offset: u64, bytes: &[u8], gate: &mut Gate<'_>) {
    if let Some(write) = ConfigWrite::of(&device.config(), offset, bytes) {
        device.write_config(write, gate);
    }
}
