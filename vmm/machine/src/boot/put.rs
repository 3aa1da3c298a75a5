//! Writes a structure of the boot into guest memory.

use kemari_hypervisor::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::error::BootError;

/// Writes `bytes` at `addr`.
pub(super) fn put_slice(memory: &GuestMemory, bytes: &[u8], addr: u64) -> Result<(), BootError> {
    memory
        .write_slice(bytes, GuestAddress(addr))
        .map_err(|e| BootError::Write { addr, reason: e.to_string() })
}
