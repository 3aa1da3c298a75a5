//! The contract of a device, as a test suite.
//!
//! Give it a way to make the device and an example of what a driver does with it. It checks what no reader of the
//! device's code can be sure of:
//!
//! - saved and restored between any two steps, with requests in flight, the device goes on as if nothing had happened;
//!   in the example, and among random requests;
//! - a saved state of another kind or version, with a field missing, left over, of another type or out of range, is
//!   refused, and leaves the device as it was; one that is accepted is one that the device can go on from;
//! - a reset brings back the state after power-on;
//! - malformed requests and input, and chains that change while a request is in flight, do not make it panic, loop, or
//!   write more than there is room for;
//! - every set of offered features can be accepted, and accepted again after a reset;
//! - the gate's counts add up at the end of every step: no token forgotten, nothing completed twice;
//! - the same requests cause the same effects.
//!
//! A second test, `fuzz`, has guests do at random what a guest can do: requests with any bytes, chains that lead out of memory or
//! change, accesses at any offset, resets, features of any kind, and a move to another machine in the middle of it.
//!
//! ```
//! use io_gate_contract::RegisterContract;
//! # use io_gate::*;
//! # const BEEPER: Identity = Identity { kind: "beeper", virtio_id: 0, state_version: 1 };
//! # #[derive(Default)] struct Beeper { pitch: u8 }
//! # impl RegisterDevice for Beeper {
//! #     fn identity(&self) -> Identity { BEEPER }
//! #     fn read(&mut self, _: u64, into: &mut [u8], _: &mut Gate<'_>) { into.fill(self.pitch) }
//! #     fn write(&mut self, _: u64, from: &[u8], gate: &mut Gate<'_>) {
//! #         if let Some(pitch) = from.first() {
//! #             self.pitch = *pitch;
//! #             gate.token::<ConsoleTx>().emit(Port(0), vec![*pitch]);
//! #         }
//! #     }
//! #     fn intake(&mut self, _: Port, data: &[u8], _: &mut Gate<'_>) -> usize { data.len() }
//! #     fn line(&mut self) -> LineState { LineState::Quiet }
//! #     fn reset(&mut self) { self.pitch = 0 }
//! #     fn save(&self) -> SavedState { SavedState::new(&BEEPER).number("pitch", self.pitch.into()) }
//! #     fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
//! #         let mut fields = state.open(&BEEPER)?;
//! #         let pitch = fields.small("pitch")?;
//! #         fields.close()?;
//! #         self.pitch = pitch;
//! #         Ok(())
//! #     }
//! # }
//! RegisterContract::new(|| Box::new(Beeper::default())).write(0, b"a").read(0, 1).check();
//! ```
//!
//! The suite plays the far side with io-gate's own ledger: the device cannot tell it from a machine.

#![forbid(unsafe_code)]

mod fuzz;
mod memory;
mod register;
mod saved;
mod suite;
mod violation;
mod virtio;

pub use register::RegisterContract;
pub use violation::Violation;
pub use virtio::VirtioContract;
