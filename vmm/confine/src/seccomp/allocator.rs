//! Makes glibc's allocator open its files while every thread still may.
//!
//! The allocator reads `/proc/sys/vm/overcommit_memory` when it first returns memory of a thread other than the first to
//! the kernel, and counts the processors when there are many threads; both once, in the thread that happens to run. A
//! device thread that frees enough memory would appear to open files.

use std::hint::black_box;
use std::io;

use crate::threads;

/// Blocks of this size come from a thread's own heap: blocks above 128 KiB are requested from the kernel one by one.
const BLOCK: usize = 100 << 10;
/// Number of blocks that, freed together, shrink the heap.
const BLOCKS: usize = 64;
/// Heaps for each processor, glibc's default on 64-bit machines.
#[cfg(target_env = "gnu")]
const HEAPS: usize = 8;

/// Makes the allocator do its one-time reads. Call it before the first filter.
///
/// # Errors
/// When a second thread cannot be started.
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
    // If this allocation fails, the code below reports it.
    let _ = threads::start("allocator", allocate)?.join();
    Ok(())
}
