//! Which disks of a machine are own disks.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::effect::Port;

/// The ports of a machine's own disks, each with the slot of its device. Known when the machine is
/// planned, and the same on both sides of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnPorts(BTreeSet<(u16, Port)>);

impl OwnPorts {
    /// These ports.
    #[must_use]
    pub fn new(ports: Vec<(u16, Port)>) -> Self {
        Self(ports.into_iter().collect())
    }

    /// Of a machine whose disks are all shared.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether an own disk is behind a port of a slot.
    #[must_use]
    pub fn contains(&self, slot: u16, port: Port) -> bool {
        self.0.contains(&(slot, port))
    }

    /// Whether a slot has an own disk.
    #[must_use]
    pub fn has_slot(&self, slot: u16) -> bool {
        self.0.range((slot, Port(0))..=(slot, Port(u8::MAX))).next().is_some()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
