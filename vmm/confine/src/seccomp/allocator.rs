//! Makes glibc's allocator open its files while every thread may still open files.
//!
//! The allocator reads `/proc/sys/vm/overcommit_memory` when it first returns memory of a thread
//! other than the first to the kernel. It counts the processors when there are many threads. It
//! does each once, on the thread that runs then: a device thread that frees enough memory would
//! seem to open files.

use std::hint::black_box;
use std::io;

use super::threads;

/// Size of a block in bytes. It comes from a thread's own heap; the allocator maps blocks above 128
/// KiB one by one.
const BLOCK: usize = 100 << 10;
/// Number of blocks that shrink the heap when all are freed.
const BLOCKS: usize = 64;
/// Number of heaps per processor, glibc's default on 64-bit machines.
#[cfg(target_env = "gnu")]
const HEAPS: usize = 8;

/// Makes the allocator do its one-time reads. Call it before the first filter is installed.
///
/// # Errors
/// When a second thread cannot be started.
pub(super) fn settle() -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let heaps = libc::c_int::try_from(HEAPS * processors).unwrap_or(libc::c_int::MAX);
        // SAFETY: mallopt changes a parameter of the allocator, and takes its own locks. Where it
        // refuses, the allocator counts the processors itself.
        let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) };
    }
    let allocate = || {
        let blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| vec![1; BLOCK]).collect();
        drop(black_box(blocks));
    };
    // Ignore a failure of this allocation: the next one reports it.
    let _ = threads::start_without_role("allocator", allocate)?.join();
    Ok(())
}
