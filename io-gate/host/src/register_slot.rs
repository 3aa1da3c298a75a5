//! One device that is driven by registers, in its slot.

use std::sync::Arc;

use io_gate::{Identity, Port, RegisterDevice};

use crate::gate_host::GateHost;
use crate::slot_state::{RegisterState, SlotError};

/// The port through which a register device takes input.
const INPUT: Port = Port(0);

/// A register device in its slot of the machine. Its methods say whether its interrupt line is to
/// be pulsed.
pub struct RegisterSlot {
    slot: u16,
    device: Box<dyn RegisterDevice>,
    gate: Arc<GateHost>,
    /// Input that the device had no room for.
    pending: Vec<u8>,
    scratch: Vec<u8>,
}

impl RegisterSlot {
    /// Puts a device into a slot.
    #[must_use]
    pub fn new(slot: u16, device: Box<dyn RegisterDevice>, gate: Arc<GateHost>) -> Self {
        Self { slot, device, gate, pending: Vec::new(), scratch: Vec::new() }
    }

    /// Its number.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// What the device is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.device.identity()
    }

    /// The guest reads a register. Whether to interrupt.
    #[must_use]
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> bool {
        let gate = self.gate.clone();
        let mut ledger = gate.ledger();
        ledger.detached_session(self.slot, |gate| self.device.read(offset, into, gate));
        self.end(ledger);
        // A read may have made room.
        if !self.pending.is_empty() {
            self.move_input();
        }
        self.device.take_interrupt()
    }

    /// The guest writes a register. Whether to interrupt.
    #[must_use]
    pub fn write(&mut self, offset: u64, from: &[u8]) -> bool {
        let gate = self.gate.clone();
        let mut ledger = gate.ledger();
        ledger.detached_session(self.slot, |gate| self.device.write(offset, from, gate));
        self.end(ledger);
        self.device.take_interrupt()
    }

    fn end(&self, ledger: std::sync::MutexGuard<'_, io_gate::host::Ledger>) {
        let done = self.gate.end_staging(ledger, self.slot);
        debug_assert!(done.is_empty(), "no chain waits for a register device");
    }

    /// A backend has input for a port. Whether to interrupt.
    #[must_use]
    pub fn intake(&mut self, port: Port) -> bool {
        if port == INPUT {
            self.move_input();
        } else {
            self.gate.want_input(self.slot, port, false);
        }
        self.device.take_interrupt()
    }

    fn move_input(&mut self) {
        loop {
            if self.pending.is_empty() && !self.gate.receive(self.slot, INPUT, &mut self.scratch) {
                self.gate.want_input(self.slot, INPUT, true);
                return;
            }
            if self.pending.is_empty() {
                std::mem::swap(&mut self.pending, &mut self.scratch);
            }
            let consumed = self.device.intake(INPUT, &self.pending).min(self.pending.len());
            self.pending.drain(..consumed);
            if !self.pending.is_empty() {
                // No room: the backend is asked again when the guest has read something.
                self.gate.want_input(self.slot, INPUT, false);
                return;
            }
        }
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.device.reset();
        self.pending.clear();
        self.gate.want_input(self.slot, INPUT, true);
    }

    /// Everything that a guest could tell the difference by.
    #[must_use]
    pub fn save(&self) -> RegisterState {
        let pending_input = if self.pending.is_empty() {
            Vec::new()
        } else {
            vec![(INPUT.0, self.pending.clone())]
        };
        RegisterState { pending_input, device: self.device.save() }
    }

    /// Takes on a saved state.
    ///
    /// # Errors
    /// When the state is another device's or cannot be.
    pub fn restore(&mut self, state: &RegisterState) -> Result<(), SlotError> {
        self.device
            .restore(&state.device)
            .map_err(|error| SlotError::Device { slot: self.slot, error })?;
        let saved = state.pending_input.iter().find(|(port, _)| *port == INPUT.0);
        self.pending = saved.map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        Ok(())
    }
}

impl std::fmt::Debug for RegisterSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegisterSlot")
            .field("slot", &self.slot)
            .field("device", &self.device.identity())
            .finish_non_exhaustive()
    }
}
