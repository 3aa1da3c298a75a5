//! The reset line of a keyboard controller: the way in which PCs are reset.

use io_gate::{Gate, Identity, Port, Power, PowerEvent, RegisterDevice, SavedState, StateError};

const IDENTITY: Identity = Identity { kind: "reset", virtio_id: 0, state_version: 1 };

/// The command that pulses the reset line.
const PULSE_RESET: u8 = 0xfe;

/// The command port of a keyboard controller (0x64) that has nothing but the reset line.
#[derive(Debug, Default)]
pub struct ResetControl(());

impl ResetControl {
    /// A reset line.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl RegisterDevice for ResetControl {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn read(&mut self, _offset: u64, into: &mut [u8], _gate: &mut Gate<'_>) {
        // Neither buffer is full: a command is taken at once, and there is no key.
        into.fill(0);
    }

    fn write(&mut self, offset: u64, from: &[u8], gate: &mut Gate<'_>) {
        if offset == 0 && from.first() == Some(&PULSE_RESET) {
            gate.token::<Power>().emit(PowerEvent::Reset);
        }
    }

    fn intake(&mut self, _port: Port, data: &[u8]) -> usize {
        data.len()
    }

    fn take_interrupt(&mut self) -> bool {
        false
    }

    fn reset(&mut self) {
        // It has no state.
    }

    fn save(&self) -> SavedState {
        SavedState::new(&IDENTITY)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.open(&IDENTITY)?.close()
    }
}

#[cfg(test)]
mod tests {
    use io_gate::host::{EffectOp, Request};

    use super::*;
    use crate::test_support::TestGate;

    #[test]
    fn the_pulse_command_resets_and_no_other() {
        let (mut gate, mut device) = (TestGate::open(), ResetControl::new());
        gate.write_register(&mut device, 0, &[0xd1]);
        gate.write_register(&mut device, 0, &[]);
        gate.write_register(&mut device, 1, &[0xfe]);
        assert!(gate.requests().is_empty());
        gate.write_register(&mut device, 0, &[0xfe]);
        assert_eq!(gate.requests(), [Request::Effect(EffectOp::Power(PowerEvent::Reset))]);
        assert_eq!(gate.read_register::<1>(&mut device, 0), [0]);
        assert_eq!(device.restore(&device.save()), Ok(()));
    }
}
