//! The contract of a device, as a test suite.
//!
//! It needs a function that makes the device and an example of a driver's requests. It checks what
//! reading the device's code cannot prove:
//!
//! - Saved and restored between any two steps, with requests in flight, the device continues
//!   unchanged, in the example and among random requests.
//! - A saved state of another kind or version, or with a field that is missing, left over, of
//!   another type or out of range, is refused and leaves the device unchanged. From an accepted
//!   state the device can continue.
//! - A driver's write to a field of the configuration space is refused or taken: the field has its
//!   former value or the written one. Saved and restored after it, the device continues unchanged.
//! - A reset restores the state after power-on.
//! - Malformed requests and input, and chains that change while a request is in flight, do not make
//!   it panic, loop, or write more than fits.
//! - Every set of offered features can be accepted, and accepted again after a reset.
//! - The gate's counts are balanced at the end of every step: no token is forgotten, and nothing is
//!   completed twice.
//! - The same requests cause the same effects.
//!
//! A second test, `fuzz`, runs random guests: requests with any bytes, chains that leave memory or
//! change, accesses at any offset, resets, any features, and a move to another machine in between.
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
//! The suite plays the far side with io-gate's own ledger: to the device it looks like a machine.

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
