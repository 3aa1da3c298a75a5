//! The fixed power registers of ACPI (ACPI 6.5, 4.8.3): power-off and the power button.
//!
//! The button is fixed hardware (4.8.2.2.1.1). A press sets a bit in the status register. While the
//! bit is set and the driver has enabled the button, the system control interrupt is asserted. The
//! driver clears the bit, and decides how to react.

use io_gate::{
    Gate, Identity, LineState, Port, Power, PowerEvent, RegisterDevice, SavedState, StateError,
    note, saved_state,
};

use crate::read_bytes;

const IDENTITY: Identity = Identity { kind: "acpi-power", virtio_id: 0, state_version: 2 };

// Offsets in its window: the event block (status, enable), then the control block.
const STATUS: usize = 0;
const ENABLE: usize = 2;
const CONTROL: usize = 4;
const WINDOW: usize = 6;

/// The power button's bit in the status register and in the enable register.
const POWER_BUTTON: u16 = 1 << 8;

// The control register's bits.
const SCI_ENABLE: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 0b111;

/// The state of the power button.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Button {
    /// It was pressed, and the driver has not yet cleared the bit.
    pub pressed: bool,
    /// The driver has enabled it.
    pub enabled: bool,
}

saved_state! {
    /// The PM1a event and control registers in one window of 6 bytes (4.8.3.1, 4.8.3.2).
    #[derive(Debug, Default)]
    pub struct PowerControl {
        status: u16,
        enable: u16,
        control: u16,
    }
}

impl PowerControl {
    /// The length of its window.
    pub const WINDOW: u64 = WINDOW as u64;
    /// The sleep type for S5 (soft off). The `_S5_` object of the ACPI tables must contain it.
    pub const S5_SLEEP_TYPE: u8 = 5;

    /// The port for presses of the button. Any number of bytes counts as one press.
    pub const BUTTON: Port = Port(0);

    /// The registers after power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The state of the button in a saved state.
    ///
    /// # Errors
    /// When the state belongs to another device.
    pub fn button(state: &SavedState) -> Result<Button, StateError> {
        let Self { status, enable, .. } = state.open(&IDENTITY)?;
        Ok(Button { pressed: status & POWER_BUTTON != 0, enabled: enable & POWER_BUTTON != 0 })
    }

    fn window(&self) -> [u8; WINDOW] {
        let mut window = [0; WINDOW];
        window[STATUS..ENABLE].copy_from_slice(&self.status.to_le_bytes());
        window[ENABLE..CONTROL].copy_from_slice(&self.enable.to_le_bytes());
        // The machine is always in ACPI mode.
        window[CONTROL..].copy_from_slice(&(self.control | SCI_ENABLE).to_le_bytes());
        window
    }

    fn write_control(&mut self, value: u16, gate: &mut Gate<'_>) {
        // The bit that starts the transition always reads as zero.
        self.control = value & !SLEEP_ENABLE;
        let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
        if value & SLEEP_ENABLE == 0 {
            return;
        }
        if sleep_type == u16::from(Self::S5_SLEEP_TYPE) {
            gate.token::<Power>().emit(PowerEvent::Off);
        } else {
            note::warn(
                "acpi-power: expected sleep type 5 (off): ignored",
                &[("found", sleep_type.into())],
            );
        }
    }
}

impl RegisterDevice for PowerControl {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn read(&mut self, offset: u64, into: &mut [u8], _gate: &mut Gate<'_>) {
        read_bytes(&self.window(), offset, into);
    }

    fn write(&mut self, offset: u64, from: &[u8], gate: &mut Gate<'_>) {
        let Some(offset) = usize::try_from(offset).ok().filter(|offset| *offset < WINDOW) else {
            return;
        };
        // Any width is allowed: registers that are not written keep their value.
        let mut window = self.window();
        // Writing ones clears status bits, so bytes that are not written must be zero here.
        window[STATUS..ENABLE].fill(0);
        let len = from.len().min(WINDOW - offset);
        window[offset..offset + len].copy_from_slice(&from[..len]);
        self.status &= !u16::from_le_bytes([window[0], window[1]]);
        self.enable = u16::from_le_bytes([window[2], window[3]]);
        if offset + len > CONTROL {
            self.write_control(u16::from_le_bytes([window[4], window[5]]), gate);
        }
    }

    fn intake(&mut self, port: Port, data: &[u8], _gate: &mut Gate<'_>) -> usize {
        if port == Self::BUTTON && !data.is_empty() {
            self.status |= POWER_BUTTON;
        }
        data.len()
    }

    fn line(&mut self) -> LineState {
        LineState::Level(self.status & self.enable & POWER_BUTTON != 0)
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn save(&self) -> SavedState {
        SavedState::of(&IDENTITY, self)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let restored: Self = state.open(&IDENTITY)?;
        if restored.status & !POWER_BUTTON != 0 {
            let (expected, found) = ("no bit but the power button's", restored.status.into());
            return Err(StateError::number(&IDENTITY, "status", expected, found));
        }
        if restored.control & SLEEP_ENABLE != 0 {
            let expected = "the bit that starts a transition clear";
            let found = restored.control.into();
            return Err(StateError::number(&IDENTITY, "control", expected, found));
        }
        *self = restored;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use io_gate::host::{EffectOp, Request};

    use super::*;
    use crate::test_support::TestGate;

    #[test]
    fn sleep_type_5_powers_off() {
        let (mut gate, mut device) = (TestGate::open(), PowerControl::new());
        gate.write_register(&mut device, 4, &(5_u16 << 10).to_le_bytes());
        assert!(gate.requests().is_empty(), "the type alone starts nothing");
        gate.write_register(&mut device, 4, &(3_u16 << 10 | SLEEP_ENABLE).to_le_bytes());
        assert!(gate.requests().is_empty(), "another type is not off");
        gate.write_register(&mut device, 4, &(5_u16 << 10 | SLEEP_ENABLE).to_le_bytes());
        assert_eq!(gate.requests(), [Request::Effect(EffectOp::Power(PowerEvent::Off))]);
        let control: [u8; 2] = gate.read_register(&mut device, 4);
        assert_eq!(u16::from_le_bytes(control), 5 << 10 | SCI_ENABLE);
    }

    #[test]
    fn bytes_can_be_written_one_by_one() {
        let (mut gate, mut device) = (TestGate::open(), PowerControl::new());
        gate.write_register(&mut device, 2, &[0x21]);
        gate.write_register(&mut device, 3, &[0x01]);
        assert_eq!(gate.read_register::<2>(&mut device, 2), [0x21, 0x01]);
        gate.write_register(&mut device, 5, &[0x34]);
        assert_eq!(gate.requests(), [Request::Effect(EffectOp::Power(PowerEvent::Off))]);
    }

    #[test]
    fn accesses_beyond_the_window_do_nothing() {
        let (mut gate, mut device) = (TestGate::open(), PowerControl::new());
        gate.write_register(&mut device, 6, &[0xff; 4]);
        gate.write_register(&mut device, u64::MAX, &[0xff]);
        assert_eq!(gate.read_register::<8>(&mut device, 0), [0, 0, 0, 0, 1, 0, 0, 0]);
        gate.write_register(&mut device, 0, &[0xff; 4]);
        assert_eq!(gate.read_register::<4>(&mut device, 0), [0, 0, 0xff, 0xff]);
    }

    #[test]
    fn the_button_interrupts_until_the_driver_has_seen_it() {
        let (mut gate, mut device) = (TestGate::open(), PowerControl::new());
        let press = |gate: &mut TestGate, device: &mut PowerControl| {
            assert_eq!(gate.give(device, PowerControl::BUTTON, &[1]), 1);
        };
        press(&mut gate, &mut device);
        assert_eq!(device.line(), LineState::Level(false), "nobody has asked for it");
        let button = PowerControl::button(&device.save());
        assert_eq!(button, Ok(Button { pressed: true, enabled: false }));
        // Enabling it later does not lose the press.
        gate.write_register(&mut device, 2, &0x100_u16.to_le_bytes());
        assert_eq!(device.line(), LineState::Level(true));
        let mut other = PowerControl::new();
        assert_eq!(other.restore(&device.save()), Ok(()));
        assert_eq!(other.line(), LineState::Level(true), "where it goes on after a takeover, too");
        assert_eq!(gate.read_register(&mut device, 0), 0x100_u16.to_le_bytes());
        // Ones clear bits, zeros do not.
        gate.write_register(&mut device, 0, &0xfe_ff_u16.to_le_bytes());
        assert_eq!(device.line(), LineState::Level(true));
        gate.write_register(&mut device, 0, &0x100_u16.to_le_bytes());
        assert_eq!(device.line(), LineState::Level(false));
        assert_eq!(gate.read_register(&mut device, 0), [0, 0]);
        press(&mut gate, &mut device);
        assert_eq!(device.line(), LineState::Level(true), "every press counts");
        device.reset();
        assert_eq!(device.line(), LineState::Level(false));
    }

    #[test]
    fn its_state_comes_back() {
        let (mut gate, mut device) = (TestGate::open(), PowerControl::new());
        gate.write_register(&mut device, 2, &[0x21, 0x01, 0, 4]);
        let mut other = PowerControl::new();
        assert_eq!(other.restore(&device.save()), Ok(()));
        assert_eq!(other.save(), device.save());
        let other_bit = PowerControl { status: POWER_BUTTON | 1, ..PowerControl::new() };
        assert!(other.restore(&other_bit.save()).is_err());
    }
}
