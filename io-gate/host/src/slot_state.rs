//! The saved state of a slot: the states of its device, its virtqueues and its driver.

use io_gate::{SavedState, StateError};
use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

/// One virtqueue: its settings and its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSaved {
    /// The maximum size that the device offers.
    pub max_size: u16,
    /// The size that the driver chose.
    pub size: u16,
    /// Whether the driver has enabled the virtqueue.
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
    /// Whether event indexes control notifications.
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

/// The state of a virtio slot that affects what the guest sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// The features that the driver accepted.
    pub features: u64,
    /// Whether the driver is active.
    pub active: bool,
    /// Whether the driver has violated the protocol and must reset the device.
    pub needs_reset: bool,
    /// The number of changes of the configuration space.
    pub config_generation: u32,
    /// Requests with smaller ids are older than the last reset.
    pub first_id: u64,
    /// The virtqueues.
    pub queues: Vec<QueueSaved>,
    /// Input received from outside that the driver has not yet taken, by port.
    pub pending_input: Vec<(u8, Vec<u8>)>,
    /// The device's own state.
    pub device: SavedState,
}

/// The saved state of a register slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterState {
    /// Input received from outside that the device has not yet taken, by port.
    pub pending_input: Vec<(u8, Vec<u8>)>,
    /// The device's own state.
    pub device: SavedState,
}

/// Why a slot refuses a driver's request or a saved state.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The driver accepts features that were not offered, or lacks `VERSION_1`.
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
        /// The accepted feature.
        feature: u64,
        /// The features of which the accepted feature needs one.
        one_of: u64,
    },
    /// The driver continues although it must reset the device.
    #[error(
        "slot {slot}: expected a reset of the device, found a driver that continues without one"
    )]
    NeedsReset {
        /// The slot.
        slot: u16,
    },
    /// A virtqueue is outside guest memory or otherwise invalid.
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
        /// Number of virtqueues of the device.
        expected: usize,
        /// Number of virtqueues in the saved state.
        found: usize,
    },
    /// The device refuses its saved state.
    #[error("slot {slot}: {error}")]
    Device {
        /// The slot.
        slot: u16,
        /// The reason.
        error: StateError,
    },
}
