//! The contract of a device, as a test suite.
//!
//! The suite needs a function that makes the device, and an example of a driver's requests. It
//! checks rules that reading the device's code cannot prove:
//!
//! - A device that is saved and restored between any two steps, with requests in flight, continues
//!   unchanged. This is checked in the example and with random requests.
//! - A device refuses a saved state of another kind or version, or with a field that is missing,
//!   left over, of another type or out of range. A refused state leaves the device unchanged. A
//!   device can continue from an accepted state.
//! - After a driver's write to a field of the configuration space, the field has its former value
//!   or the written one. A device that is saved and restored after the write continues unchanged.
//! - A reset restores the state after power-on.
//! - Malformed requests and input, and chains that change while a request is in flight, do not make
//!   the device panic, loop, or write more bytes than fit.
//! - A driver can accept every set of offered features, and accept it again after a reset.
//! - The gate's counts are balanced at the end of every step: no token is forgotten, and no request
//!   is completed twice.
//! - The same requests cause the same effects.
//!
//! A second test, `fuzz`, runs random guests. They make requests with any bytes, lend chains that
//! leave memory or change, access any offset, reset the device and accept any features. In between,
//! the device moves to another machine.
//!
//! ```
//! use io_gate_contract::RegisterContract;
//! # use io_gate::*;
//! # const BEEPER: Identity = Identity { kind: "beeper", virtio_id: 0, state_version: 1 };
//! # saved_state! { #[derive(Default)] struct Beeper { pitch: u8 } }
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
//! #     fn save(&self) -> SavedState { SavedState::of(&BEEPER, self) }
//! #     fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
//! #         *self = state.open(&BEEPER)?;
//! #         Ok(())
//! #     }
//! # }
//! RegisterContract::new(|| Box::new(Beeper::default())).write(0, b"a").read(0, 1).check();
//! ```
//!
//! The suite acts as the far side, with io-gate's own ledger: to the device it looks like a
//! machine.

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
