//! Devices of other crates, used behind the gate without changes.
//!
//! The device is connected to [`Wires`]: a writer that only records bytes, and lines that only
//! record requests. After each access [`Adapter`] reads the wires and spends tokens for what they
//! have recorded. An implementation of [`Foreign`] defines how the device is accessed and what its
//! saved state is.

mod i8042;
mod rtc;
mod rust_vmm;
mod serial;
mod wires;

use io_gate::{
    ConsoleTx, Gate, Identity, LineState, Port, Power, PowerEvent, RegisterDevice, SavedState,
    StateError, StateFields, saved_state,
};

pub use i8042::I8042;
pub use rtc::Rtc;
pub use rust_vmm::{Keep, MmioDevice, PioDevice};
pub use serial::Serial;
pub use wires::{Line, StagingWriter, Wires};

/// The port for a device's output.
const OUTPUT: Port = Port(0);

/// What the adapter needs to know about a device of another crate.
///
/// The device must reach the outside only through its [`Wires`]. A device that opens files itself
/// cannot be used: its effects could not be held.
pub trait Foreign: Sized + Send {
    /// The device's identity.
    const IDENTITY: Identity;

    /// Everything that affects what the guest sees, without the wires: a struct that is declared
    /// within [`io_gate::saved_state!`].
    type State: StateFields;

    /// Creates the device in its state after power-on.
    fn power_on(wires: &Wires) -> Self;

    /// Handles the guest's read of a register.
    fn read(&mut self, offset: u64, into: &mut [u8]);

    /// Handles the guest's write of a register.
    fn write(&mut self, offset: u64, from: &[u8]);

    /// Handles input. Returns the number of bytes consumed. The rest is offered again.
    fn intake(&mut self, data: &[u8]) -> usize;

    /// The device's state.
    fn save(&self) -> Self::State;

    /// Creates the device from its saved state. The adapter clears what the restore has put on the
    /// wires.
    ///
    /// # Errors
    /// When a field has a value that the device cannot have.
    fn restore(state: Self::State, wires: &Wires) -> Result<Self, StateError>;
}

saved_state! {
    /// What an adapter adds to its device's state. The other wires are empty between two accesses.
    struct WireState {
        interrupt: bool,
    }
}

/// A device of another crate as a register device of this machine.
pub struct Adapter<F> {
    device: F,
    wires: Wires,
}

impl<F: Foreign> Adapter<F> {
    /// Creates the device in its state after power-on.
    #[must_use]
    pub fn new() -> Self {
        let wires = Wires::default();
        Self { device: F::power_on(&wires), wires }
    }

    /// Stages the output and the reset request that the device has put on its wires.
    fn stage(&self, gate: &mut Gate<'_>) {
        let written = self.wires.output.take();
        if !written.is_empty() {
            gate.token::<ConsoleTx>().emit(OUTPUT, written);
        }
        if self.wires.reset.take() {
            gate.token::<Power>().emit(PowerEvent::Reset);
        }
    }
}

impl<F: Foreign> Default for Adapter<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Foreign> RegisterDevice for Adapter<F> {
    fn identity(&self) -> Identity {
        F::IDENTITY
    }

    fn read(&mut self, offset: u64, into: &mut [u8], gate: &mut Gate<'_>) {
        self.device.read(offset, into);
        self.stage(gate);
    }

    fn write(&mut self, offset: u64, from: &[u8], gate: &mut Gate<'_>) {
        self.device.write(offset, from);
        self.stage(gate);
    }

    fn intake(&mut self, _port: Port, data: &[u8], gate: &mut Gate<'_>) -> usize {
        let taken = self.device.intake(data).min(data.len());
        // Some devices echo their input.
        self.stage(gate);
        taken
    }

    fn line(&mut self) -> LineState {
        if self.wires.interrupt.take() { LineState::Pulse } else { LineState::Quiet }
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn save(&self) -> SavedState {
        let wires = WireState { interrupt: self.wires.interrupt.is_raised() };
        SavedState::of(&F::IDENTITY, &(self.device.save(), wires))
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let (state, WireState { interrupt }): (F::State, _) = state.open(&F::IDENTITY)?;
        let wires = Wires::default();
        let device = F::restore(state, &wires)?;
        // A device may request an interrupt or print when it is restored. Only the saved state
        // counts: otherwise the two sides would differ.
        wires.clear();
        if interrupt {
            wires.interrupt.raise();
        }
        *self = Self { device, wires };
        Ok(())
    }
}
