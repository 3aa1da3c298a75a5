//! The type of guest memory, which the far side of the gate and the hypervisor share: vm-memory's
//! mapping, with a bitmap of the pages that this process has written (P8).
//!
//! This crate depends only on `vm-memory`. Code that maps guest memory belongs in
//! `kemari-hypervisor`. Code that reads and writes it for a device belongs in `io-gate-host`.

mod page_bitmap;

pub use page_bitmap::PageBitmap;

/// Guest memory, with a bitmap of the pages that this process has written.
pub type GuestMemory = vm_memory::GuestMemoryMmap<PageBitmap>;
