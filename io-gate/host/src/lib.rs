//! The far side of the gate: it drives devices, holds the effects that they stage, and performs
//! those that are committed. No other crate owns a descriptor to which a guest can cause writes
//! (P5).
//!
//! A slot ([`VirtioSlot`], [`RegisterSlot`]) calls its device and lends it the gate. [`GateHost`]
//! keeps the staged effects in its ledger and passes the released ones to lanes. Each lane is the
//! thread of one [`Backend`].

pub mod adapter;
mod aligned;
mod asks;
mod attached;
pub mod backend;
mod chain_walk;
mod clock;
mod completion;
mod descriptors;
pub mod disk_use;
mod entropy;
mod far_side;
mod fence;
mod gate_host;
mod given_up;
mod guest_memory;
mod inputs;
mod lane;
mod latency;
mod list_driver;
mod observer;
mod out;
pub mod own_disk;
pub mod own_files;
pub mod ownership;
mod permit;
mod poisoned;
mod rate_limit;
mod register_slot;
mod ring;
mod slot_state;
mod virtio_slot;
mod work;

pub use backend::Backend;
pub use clock::{since_boot, utc};
pub use completion::{Completion, Interrupt};
pub use fence::{ANSWER_MAX_AGE, Fence, Permission, Unfenced};
pub use gate_host::{GateHost, GateOptions, RESET_PATIENCE, Sealed};
pub use guest_memory::GuestMemory;
pub use lane::{LaneJob, LaneStart};
pub use latency::{EffectClass, LatencySummary};
pub use list_driver::ListDriver;
pub use observer::{Noted, Observer, Op};
pub use register_slot::RegisterSlot;
pub use slot_state::{QueueSaved, RegisterState, SlotError, SlotState};
pub use virtio_slot::VirtioSlot;
