//! How a guest is entered, and where its initrd lies: shared by both entry protocols.

/// How the first vCPU enters the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// PVH: 32-bit protected mode without paging, EBX points to the start info.
    Pvh {
        /// The guest physical address of the first instruction.
        rip: u64,
    },
    /// The 64-bit Linux boot protocol: long mode, RSI points to the zero page.
    Linux64 {
        /// The guest physical address of the first instruction.
        rip: u64,
    },
}

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Initrd {
    pub(super) addr: u64,
    pub(super) size: u64,
}
