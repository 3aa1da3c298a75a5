//! Polling virtio drivers over the MMIO transport (virtio 1.2).

pub mod blk;
pub mod console;
pub mod entropy;
pub mod net;
pub mod other;
pub mod queue;
pub mod transport;
