//! Puts the guest's bytes into an error, which is logged.

use alloc::string::String;

use io_gate::DeviceError;

pub(crate) fn transmit(frame: &[u8]) -> DeviceError {
    DeviceError::Malformed(String::from_utf8_lossy(frame).into_owned())
}
