//! The type of guest memory, which the far side of the gate and the hypervisor share: vm-memory's mapping with a bitmap of
//! the pages that this process has written (P8).
//!
//! It depends on `vm-memory` and no other crate. How guest memory is mapped belongs in `kemari-hypervisor`, and what is
//! read from it and written to it for a device in `io-gate-host`.

mod page_bitmap;

pub use page_bitmap::PageBitmap;

/// The guest's memory, with a bitmap of the pages that the VMM itself has written.
pub type GuestMemory = vm_memory::GuestMemoryMmap<PageBitmap>;
