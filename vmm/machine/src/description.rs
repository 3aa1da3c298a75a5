//! A machine as a guest sees it, in plain values: two machines with equal descriptions can restore
//! each other's state.

/// A machine as a guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDescription {
    /// The regions of guest memory: guest address and length, both in bytes.
    pub memory: Vec<(u64, u64)>,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Size of a page in bytes.
    pub page_size: u32,
    /// The devices, in the order of their saved states.
    pub devices: Vec<DeviceDescription>,
}

/// A device as a guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDescription {
    /// The device's slot.
    pub slot: u16,
    /// The device's kind, as in its saved state.
    pub kind: String,
    /// The version of its saved state.
    pub state_version: u32,
    /// The virtio features that the device offers; 0 for other devices.
    pub features: u64,
    /// Other properties that must be equal, for instance the size of a disk, as text for people.
    pub detail: String,
}
