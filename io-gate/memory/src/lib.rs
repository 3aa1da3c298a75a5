//! The type of guest memory, shared by the far side of the gate and the hypervisor: vm-memory's
//! mapping with a bitmap of the pages that this process has written (P8).
//!
//! This crate depends only on `vm-memory`. The mapping of guest memory belongs in
//! `kemari-hypervisor`. A device's reads and writes of it belong in `io-gate-host`.

mod page_bitmap;

pub use page_bitmap::PageBitmap;

/// The guest's memory, with a bitmap of the pages that the VMM itself has written.
pub type GuestMemory = vm_memory::GuestMemoryMmap<PageBitmap>;
