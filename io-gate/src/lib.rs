//! The types from which a virtual device is written. All its outward effects go through a gate, and
//! each effect costs a token.
//!
//! A device gets a [`Chain`] (the guest's request) and a [`Gate`] (the only way out), and answers
//! with a [`Verdict`]. It holds no descriptor, no socket and no callback. An effect is made only
//! from an [`EffectToken`], which lives no longer than the call in which it was issued. Staging the
//! token is the only source of [`Verdict::Held`]. A staged effect is data. It leaves the machine
//! only against a proof, [`Committed`](host::Committed) or [`Alone`](host::Alone). Only the one
//! [`CommitAuthority`](host::CommitAuthority) of the virtual machine makes proofs.
//!
//! ```
//! use io_gate::{Chain, DeviceError, Gate, NetTx, Port, Verdict};
//!
//! /// Stages a frame from the guest, to be sent to the network.
//! fn send<'e>(chain: &mut Chain<'_>, gate: &mut Gate<'e>) -> Result<Verdict<'e>, DeviceError> {
//!     let frame = chain.take_payload(chain.readable())?;
//!     Ok(gate.token::<NetTx>().stage(Port(0), frame))
//! }
//! ```
//!
//! A token is spent once, by value:
//!
//! ```compile_fail,E0382
//! # use io_gate::{Chain, DeviceError, Gate, NetTx, Port, Verdict};
//! fn twice<'e>(chain: &mut Chain<'_>, gate: &mut Gate<'e>) -> Result<Verdict<'e>, DeviceError> {
//!     let frame = chain.take_payload(chain.readable())?;
//!     let token = gate.token::<NetTx>();
//!     let _ = token.stage(Port(0), frame.clone());
//!     Ok(token.stage(Port(0), frame))
//! }
//! ```
//!
//! and cannot be kept for later:
//!
//! ```compile_fail
//! # use io_gate::{EffectToken, Gate, NetTx};
//! struct Hoarder { kept: Option<EffectToken<'static, 'static, NetTx>> }
//! fn hoard(device: &mut Hoarder, gate: &mut Gate<'_>) {
//!     device.kept = Some(gate.token::<NetTx>());
//! }
//! ```
//!
//! The module [`host`] is for the far side (a VMM and its backends), not for devices.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod chain;
mod commit;
mod config;
mod configure;
mod device;
mod effect;
mod gate;
mod identity;
mod ledger;
mod load;
pub mod note;
mod number;
mod own;
mod performable;
mod session;
mod state;
mod verdict;

pub use chain::{Chain, ChainError, MemoryFault, Payload, Space};
pub use config::{ConfigFields, ConfigPlace, ConfigSpace, ConfigWrite, Writable};
pub use device::{Device, DeviceError, Intake, LineState, Outcome, RegisterDevice};
pub use effect::{
    BlockDiscard, BlockFlush, BlockWrite, BlockWriteZeroes, ConsoleTx, EffectKind, NetTx, Port,
    Power, PowerEvent,
};
pub use gate::{EffectToken, Gate};
pub use identity::Identity;
pub use state::{Bytes, SavedState, StateError, StateFields};
pub use verdict::{Held, Pending, Verdict};

/// The far side of the gate: a VMM uses it to lend gates to devices and to release committed
/// effects. Device code must not use it: `cargo xtask gate` refuses it.
pub mod host {
    pub use crate::chain::{
        GuestBytes, GuestRange, MemoryFault, lend_chain, lend_merged, take_back,
    };
    pub use crate::commit::{Alone, CommitAuthority, Committed, Epoch, GateId, Term};
    pub use crate::configure::write_config;
    pub use crate::effect::{EffectId, EffectOp, InputOp, Origin, OwnOp, Record, Request, Seq};
    pub use crate::ledger::{
        Counts, InFlightError, Ledger, OwnCounts, OwnGate, check_in_flight, new_gate,
        new_gate_with_own_disks,
    };
    pub use crate::load::{MAX_MEMORY, MAX_RECORDED, Weight};
    pub use crate::own::{
        Completable, DiskId, DurableCommitAuthority, DurableEpoch, ImageRight, ListAuthority,
        Listable, Marked, NotInSet, OwnPorts, OwnRequest, Place, Recorded, TermAuthority, WonTerm,
    };
    pub use crate::performable::Performable;
    pub use crate::session::ChainOutcome;
}

/// The items that [`saved_state!`] and [`config_space!`] expand to. Device code must not name them.
#[doc(hidden)]
pub mod fields {
    pub use crate::config::{Changes, Listing, check_alignment, shape};
    pub use crate::state::{Restoring, Saving};
}
