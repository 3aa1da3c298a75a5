//! What a device is called.

/// What a device is called, and how its saved state is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The kind, for instance `virtio-blk`: also the kind of its [`SavedState`](crate::SavedState).
    pub kind: &'static str,
    /// The virtio device number (virtio 1.2, section 5); 0 for a device that is not virtio.
    pub virtio_id: u32,
    /// The version of its saved state.
    pub state_version: u16,
}
