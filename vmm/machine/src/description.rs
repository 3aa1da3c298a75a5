//! What a guest sees of a machine, as plain values: two machines that are described alike can take on each other's state.

/// What a guest sees of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDescription {
    /// The regions of guest memory: guest address and length in bytes.
    pub memory: Vec<(u64, u64)>,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of a page.
    pub page_size: u32,
    /// The devices, in the order of their saved states.
    pub devices: Vec<DeviceDescription>,
}

/// What a guest sees of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDescription {
    /// The device's slot.
    pub slot: u16,
    /// Its kind, as in its saved state.
    pub kind: String,
    /// The version of its saved state.
    pub state_version: u32,
    /// The virtio features that it offers; 0 for other devices.
    pub features: u64,
    /// More that must be alike, for instance the size of a disk, as text for people.
    pub detail: String,
}
