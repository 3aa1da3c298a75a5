//! The identity of a device.

/// The kind of a device, and the version of its saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The kind, for instance `virtio-blk`. Its [`SavedState`](crate::SavedState) has the same
    /// kind.
    pub kind: &'static str,
    /// The virtio device number (virtio 1.2, section 5); 0 for a device that is not virtio.
    pub virtio_id: u32,
    /// The version of its saved state.
    pub state_version: u16,
}
