//! glibc's allocator opens files: what it wants to know of the system it asks while every thread still may.
//!
//! It reads `/proc/sys/vm/overcommit_memory` when it first gives memory of a thread other than the first back to the
//! kernel, and counts the processors when there are many threads; both once, in whichever thread happens to be there. A
//! device thread that frees enough would be taken for one that reaches out.

use std::hint::black_box;
use std::io;

use crate::threads;

/// Blocks of this size come from a thread's own heap: larger ones than 128 KiB are asked of the kernel one by one.
const BLOCK: usize = 100 << 10;
/// Enough of them, freed together, for the heap to be shortened.
const BLOCKS: usize = 64;
/// Heaps for each processor, as glibc has it by itself on 64-bit machines.
#[cfg(target_env = "gnu")]
const HEAPS: usize = 8;

/// Makes the allocator ask what it asks once. Before the first filter.
///
/// # Errors
/// When there can be no other thread than the first.
pub(super) fn settle() -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let heaps = libc::c_int::try_from(HEAPS * processors).unwrap_or(libc::c_int::MAX);
        // SAFETY: mallopt changes a parameter of the allocator, and takes its own locks. Where it refuses, the allocator
        // counts the processors itself.
        let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) };
    }
    let allocate = || {
        let blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| vec![1; BLOCK]).collect();
        drop(black_box(blocks));
    };
    // Where not even this can be allocated, what follows says so.
    let _ = threads::start("allocator", allocate)?.join();
    Ok(())
}
