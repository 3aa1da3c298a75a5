//! The saved state of a slot: its device's, and that of the rings and the driver.

use io_gate::{SavedState, StateError};
use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

/// One virtqueue as the driver has set it up, and how far it has been worked off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSaved {
    /// The largest size that the device offers.
    pub max_size: u16,
    /// The size that the driver chose.
    pub size: u16,
    /// Whether the driver has enabled it.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub desc_table: u64,
    /// Guest address of the available ring.
    pub avail_ring: u64,
    /// Guest address of the used ring.
    pub used_ring: u64,
    /// The next entry of the available ring to take.
    pub next_avail: u16,
    /// The next entry of the used ring to fill.
    pub next_used: u16,
    /// Whether notifications are governed by event indexes.
    pub event_idx: bool,
}

impl From<QueueState> for QueueSaved {
    fn from(state: QueueState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx: state.event_idx_enabled,
        }
    }
}

impl From<QueueSaved> for QueueState {
    fn from(saved: QueueSaved) -> Self {
        Self {
            max_size: saved.max_size,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.desc_table,
            avail_ring: saved.avail_ring,
            used_ring: saved.used_ring,
        }
    }
}

/// Everything of a virtio slot that a guest could tell the difference by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// The features that the driver accepted.
    pub features: u64,
    /// Whether the driver is up.
    pub active: bool,
    /// Whether the driver has broken the protocol and has to reset the device.
    pub needs_reset: bool,
    /// The number of changes of the configuration space.
    pub config_generation: u32,
    /// Requests with smaller numbers belong to the time before the last reset.
    pub life: u64,
    /// The virtqueues.
    pub queues: Vec<QueueSaved>,
    /// Input that was taken from the outside and not yet by the driver, by port.
    pub pending_input: Vec<(u8, Vec<u8>)>,
    /// The device's own state.
    pub device: SavedState,
}

/// The saved state of a register slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterState {
    /// Input that was taken from the outside and not yet by the device, by port.
    pub pending_input: Vec<(u8, Vec<u8>)>,
    /// The device's own state.
    pub device: SavedState,
}

/// Why a slot refuses what its driver or a saved state asks of it.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The driver accepts features that were not offered, or too few.
    #[error(
        "slot {slot}: expected features within {offered:#x} and with VERSION_1, found {found:#x}"
    )]
    Features {
        /// The slot.
        slot: u16,
        /// What the device offers.
        offered: u64,
        /// What the driver wrote.
        found: u64,
    },
    /// The driver accepts a feature without another that it needs.
    #[error("slot {slot}: expected one of the features {one_of:#x} with {feature:#x}, found none")]
    FeatureNeeds {
        /// The slot.
        slot: u16,
        /// What the driver accepts.
        feature: u64,
        /// What it needs one of.
        one_of: u64,
    },
    /// The driver goes on although it was told to reset the device.
    #[error("slot {slot}: expected a reset of the device, found a driver that goes on without")]
    NeedsReset {
        /// The slot.
        slot: u16,
    },
    /// A virtqueue does not lie in guest memory, or is otherwise impossible.
    #[error("slot {slot}: virtqueue {queue} cannot be used: {reason}")]
    Queue {
        /// The slot.
        slot: u16,
        /// The virtqueue.
        queue: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The saved state has another number of virtqueues.
    #[error("slot {slot}: expected the state of {expected} virtqueues, found {found}")]
    QueueCount {
        /// The slot.
        slot: u16,
        /// How many the device has.
        expected: usize,
        /// How many were saved.
        found: usize,
    },
    /// The device's own state does not fit.
    #[error("slot {slot}: {error}")]
    Device {
        /// The slot.
        slot: u16,
        /// What does not fit.
        error: StateError,
    },
}
