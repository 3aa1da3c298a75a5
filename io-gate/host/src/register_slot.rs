//! A register device in its slot: register accesses of the guest, input from a backend, and the
//! effects that the device stages.
//!
//! Each call lends the gate to the device for one session. Input for which the device has no room
//! waits in the slot, and is part of the saved state.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use io_gate::host::Ledger;
use io_gate::{Gate, Identity, LineState, Port, RegisterDevice};

use crate::completion::{Completion, Kind};
use crate::gate_host::GateHost;
use crate::guest_memory::View;
use crate::slot_state::{RegisterState, SlotError};

/// The port through which a register device takes input.
const INPUT: Port = Port(0);

/// Offer at most this many pieces of input in a row, so that a sender outside cannot keep the
/// thread busy.
const ROUNDS: usize = 1024;

/// A register device in its slot of the machine. Its methods return the state of its interrupt
/// line.
pub struct RegisterSlot {
    slot: u16,
    /// P5: not dropped with the slot, since a device's `drop` would run on a thread with more
    /// rights than device code may have.
    device: ManuallyDrop<Box<dyn RegisterDevice>>,
    identity: Identity,
    gate: Arc<GateHost>,
    /// Whether the device may access guest memory now.
    bus_master: bool,
    /// Input for which the device had no room.
    pending: Vec<u8>,
    /// Whether the vCPU that made the last access must wait; see [`is_ahead`](Self::is_ahead).
    ahead: bool,
    scratch: Vec<u8>,
}

impl RegisterSlot {
    /// Puts a device into a slot.
    #[must_use]
    pub fn new(slot: u16, device: Box<dyn RegisterDevice>, gate: Arc<GateHost>) -> Self {
        Self {
            slot,
            identity: device.identity(),
            device: ManuallyDrop::new(device),
            gate,
            bus_master: false,
            pending: Vec::new(),
            ahead: false,
            scratch: Vec::new(),
        }
    }

    /// The slot's number.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// The device's identity.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Sets whether the device may access guest memory. The device's bus decides this from the
    /// settings that the driver has written. Register devices begin without this right.
    pub fn set_bus_master(&mut self, allowed: bool) {
        self.bus_master = allowed;
    }

    /// Returns the state of the interrupt line without a register access, for use after a restore.
    #[must_use]
    pub fn line(&mut self) -> LineState {
        self.device.line()
    }

    /// Gives the device input from the machine itself, for instance that a button was pressed.
    #[must_use]
    pub fn give(&mut self, data: &[u8]) -> LineState {
        self.pending.extend_from_slice(data);
        self.move_input();
        self.device.line()
    }

    /// The guest reads a register.
    #[must_use]
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> LineState {
        self.ahead = false;
        self.session(|device, gate| device.read(offset, into, gate));
        self.retry_input();
        self.device.line()
    }

    /// The guest writes a register.
    #[must_use]
    pub fn write(&mut self, offset: u64, from: &[u8]) -> LineState {
        self.ahead = false;
        self.session(|device, gate| device.write(offset, from, gate));
        self.retry_input();
        self.device.line()
    }

    /// Whether the last access added requests and the slot is now full. The vCPU that made the
    /// access must wait until [there is room](GateHost::has_room); this bounds what the machine
    /// buffers for a guest (P9). Requests that a device stages later, in `proceed`, do not count:
    /// such a device (a card with rings) waits by itself.
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        self.ahead
    }

    /// Takes the input that a backend has for a port.
    #[must_use]
    pub fn intake(&mut self, port: Port) -> LineState {
        if port == INPUT {
            self.move_input();
        } else {
            self.gate.want_input(self.slot, port, false);
        }
        self.device.line()
    }

    /// Continues the device's unfinished work, for instance after a restore.
    #[must_use]
    pub fn proceed(&mut self) -> LineState {
        self.session(|_, _| ());
        self.retry_input();
        self.device.line()
    }

    /// Calls the device with the gate lent to it. Then lets the device continue unfinished work,
    /// and hands over the requests that may leave at once.
    fn session<R>(&mut self, call: impl FnOnce(&mut dyn RegisterDevice, &mut Gate<'_>) -> R) -> R {
        let gate = self.gate.clone();
        let mut ledger = gate.ledger();
        let asked = ledger.next_id();
        let load = ledger.load_of(self.slot);
        let device = &mut **self.device;
        let result =
            lend(&mut ledger, &gate, self.slot, self.bus_master, |gate| call(device, gate));
        self.ahead |= (ledger.next_id() != asked || ledger.load_of(self.slot) != load)
            && ledger.is_full(self.slot);
        let more =
            lend(&mut ledger, &gate, self.slot, self.bus_master, |gate| device.proceed(gate));
        if more {
            gate.proceed_later(&ledger, self.slot);
        }
        let done = gate.end_staging(ledger, self.slot);
        debug_assert!(done.is_empty(), "no chain waits for a register device");
        result
    }

    /// Offers waiting input again: the access may have made room.
    fn retry_input(&mut self) {
        if !self.pending.is_empty() {
            self.move_input();
        }
    }

    fn move_input(&mut self) {
        for _ in 0..ROUNDS {
            if self.pending.is_empty() && !self.gate.receive(self.slot, INPUT, &mut self.scratch) {
                self.gate.want_input(self.slot, INPUT, true);
                return;
            }
            if self.pending.is_empty() {
                std::mem::swap(&mut self.pending, &mut self.scratch);
            }
            let data = std::mem::take(&mut self.pending);
            let consumed = self.session(|device, gate| device.intake(INPUT, &data, gate));
            self.pending = data;
            self.pending.drain(..consumed.min(self.pending.len()));
            if !self.pending.is_empty() {
                // No room: take no more input until the guest's next access, which may make room.
                self.gate.want_input(self.slot, INPUT, false);
                return;
            }
        }
        self.gate.want_input(self.slot, INPUT, true);
        self.gate.post_again(self.slot, 0);
    }

    /// Handles a completion of this slot: the device has more input to take or more work to do.
    #[must_use]
    pub fn complete(&mut self, completion: Completion) -> LineState {
        match completion.0 {
            Kind::Again { .. } => {
                self.session(|_, _| ());
                self.move_input();
            }
            // A register device has no chain that waits for a request. Settle a misplaced one, so
            // that it does not stay in flight.
            Kind::Performed(done) => self.gate.settle(done),
        }
        self.device.line()
    }

    /// Returns to the state after power-on.
    pub fn reset(&mut self) {
        self.device.reset();
        self.pending.clear();
        self.bus_master = false;
        self.gate.want_input(self.slot, INPUT, true);
    }

    /// The state of everything that affects what the guest sees.
    #[must_use]
    pub fn save(&self) -> RegisterState {
        let pending_input = if self.pending.is_empty() {
            Vec::new()
        } else {
            vec![(INPUT.0, self.pending.clone())]
        };
        RegisterState { pending_input, device: self.device.save() }
    }

    /// Restores a saved state.
    ///
    /// # Errors
    /// When the state belongs to another device or is invalid.
    pub fn restore(&mut self, state: &RegisterState) -> Result<(), SlotError> {
        self.device
            .restore(&state.device)
            .map_err(|error| SlotError::Device { slot: self.slot, error })?;
        let saved = state.pending_input.iter().find(|(port, _)| *port == INPUT.0);
        self.pending = saved.map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        Ok(())
    }
}

/// Lends the gate for one call. A bus master also gets guest memory.
fn lend<R>(
    ledger: &mut Ledger,
    gate: &GateHost,
    slot: u16,
    bus_master: bool,
    call: impl FnOnce(&mut Gate<'_>) -> R,
) -> R {
    if bus_master {
        ledger.bus_master_session(slot, &View(gate.memory()), call)
    } else {
        ledger.detached_session(slot, call)
    }
}

impl std::fmt::Debug for RegisterSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegisterSlot")
            .field("slot", &self.slot)
            .field("device", &self.identity)
            .finish_non_exhaustive()
    }
}
