//! @NAME@: say here what the device is, and which specification it follows.

use io_gate::{
    ConsoleTx, Gate, Identity, LineState, Port, RegisterDevice, SavedState, StateError, saved_state,
};

use crate::read_bytes;

const IDENTITY: Identity = Identity { kind: "@NAME@", virtio_id: 0, state_version: 1 };

/// The port of the printed text.
const OUTPUT: Port = Port(0);

/// A write prints its first byte, and interrupts the driver after each line. Reads as zero.
const DATA: u64 = 0;
/// The number of printed bytes: 8 bytes, read-only.
const COUNT: u64 = 8;

saved_state! {
    /// Two registers: one prints, and one counts.
    #[derive(Debug, Default)]
    pub struct @TYPE@ {
        count: u64,
        interrupt: bool,
    }
}

impl @TYPE@ {
    /// The device after power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl RegisterDevice for @TYPE@ {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn read(&mut self, offset: u64, into: &mut [u8], _gate: &mut Gate<'_>) {
        match offset.checked_sub(COUNT) {
            Some(within) => read_bytes(&self.count.to_le_bytes(), within, into),
            None => into.fill(0),
        }
    }

    fn write(&mut self, offset: u64, from: &[u8], gate: &mut Gate<'_>) {
        let (DATA, Some(byte)) = (offset, from.first()) else { return };
        self.count = self.count.wrapping_add(1);
        self.interrupt |= *byte == b'\n';
        gate.token::<ConsoleTx>().emit(OUTPUT, alloc::vec![*byte]);
    }

    fn line(&mut self) -> LineState {
        if core::mem::take(&mut self.interrupt) { LineState::Pulse } else { LineState::Quiet }
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn save(&self) -> SavedState {
        SavedState::of(&IDENTITY, self)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        *self = state.open(&IDENTITY)?;
        Ok(())
    }
}
