//! The far side's call for a driver's write to the configuration space of a device.

use crate::config::ConfigWrite;
use crate::device::Device;
use crate::gate::Gate;

/// Passes a driver's write on to the device. Bytes outside the writable fields are dropped. The
/// device is not called if no byte is left.
pub fn write_config(device: &mut dyn Device, offset: u64, bytes: &[u8], gate: &mut Gate<'_>) {
    if let Some(write) = ConfigWrite::of(&device.config(), offset, bytes) {
        device.write_config(write, gate);
    }
}
