//! The unit in which virtio addresses a disk.

/// Bytes in a sector, everywhere in virtio (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;
