//! The guest's memory: the mapped ranges, the memory shared with devices, and the region to dirty.

use core::sync::atomic::{AtomicUsize, Ordering};

/// A range of memory.
#[derive(Clone, Copy, Default)]
pub struct Region {
    /// The first byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

/// End of the range that `boot.s` maps one to one.
pub const MAPPED_AT_BOOT: u64 = 4 << 30;
/// Maximum end of the mapped range.
const MAPPED_LIMIT: u64 = 16 << 30;
const HIGH_GIGABYTES: usize = ((MAPPED_LIMIT - MAPPED_AT_BOOT) >> 30) as usize;
const USER_WRITABLE: u64 = 0x7;
const LARGE_PAGE: u64 = 0x80;

/// Size in bytes of the memory for structures shared with a device or the hypervisor.
const ARENA_LEN: usize = 4 << 20;

#[repr(C, align(4096))]
struct Arena(core::cell::UnsafeCell<[u8; ARENA_LEN]>);

// SAFETY: `allocate` is the only access, and hands out every byte at most once.
unsafe impl Sync for Arena {}

#[repr(C, align(4096))]
struct Tables(core::cell::UnsafeCell<[[u64; 512]; HIGH_GIGABYTES]>);

// SAFETY: only `map_high` accesses it; one CPU calls that once, before another CPU runs.
unsafe impl Sync for Tables {}

static ARENA: Arena = Arena(core::cell::UnsafeCell::new([0; ARENA_LEN]));
static ARENA_USED: AtomicUsize = AtomicUsize::new(0);
static HIGH_TABLES: Tables = Tables(core::cell::UnsafeCell::new([[0; 512]; HIGH_GIGABYTES]));

unsafe extern "C" {
    static mut pdpt: [u64; 512];
    static image_end: u8;
}

/// A type for which zeros are a valid value, and which may be shared by physical address.
///
/// # Safety
/// All-zero bytes must be a valid value of the type.
pub unsafe trait Zeroed: Sized + 'static {}

// SAFETY: integers.
unsafe impl Zeroed for u8 {}
// SAFETY: integers.
unsafe impl Zeroed for u64 {}
// SAFETY: zeros are a value of each element.
unsafe impl<T: Zeroed, const N: usize> Zeroed for [T; N] {}

/// Allocates zeroed memory for a `T`, which is never freed. Its address is its physical address.
pub fn allocate<T: Zeroed>() -> &'static mut T {
    let align = align_of::<T>().max(64);
    let mut used = ARENA_USED.load(Ordering::Relaxed);
    loop {
        let start = used.next_multiple_of(align);
        let end = start + size_of::<T>();
        assert!(end <= ARENA_LEN, "the arena is too small for {end} bytes");
        match ARENA_USED.compare_exchange(used, end, Ordering::Relaxed, Ordering::Relaxed) {
            // SAFETY: the range start..end is inside the arena, was claimed by this call only, is
            // aligned for T, and is still zero from `boot.s`, which T allows.
            Ok(_) => unsafe { return &mut *ARENA.0.get().cast::<u8>().add(start).cast::<T>() },
            Err(now) => used = now,
        }
    }
}

/// Maps the RAM above 4 GiB. Call it once, while only one CPU runs.
pub fn map_high(regions: &[Region]) {
    let end = regions.iter().map(|region| region.end).max().unwrap_or(0);
    for gigabyte in 0..HIGH_GIGABYTES {
        let start = MAPPED_AT_BOOT + ((gigabyte as u64) << 30);
        if start >= end {
            break;
        }
        // SAFETY: one CPU calls this once; the entries were not present before, so no cached
        // translation can be stale.
        unsafe {
            let table = &mut (*HIGH_TABLES.0.get())[gigabyte];
            for (page, entry) in table.iter_mut().enumerate() {
                *entry = (start + ((page as u64) << 21)) | LARGE_PAGE | USER_WRITABLE;
            }
            let entry = &raw mut pdpt[4 + gigabyte];
            entry.write_volatile(table.as_ptr() as u64 | USER_WRITABLE);
        }
    }
}

/// Size of all RAM in bytes.
pub fn total(regions: &[Region]) -> u64 {
    regions.iter().map(|region| region.end - region.start).sum()
}

/// The largest range of mapped RAM, in whole pages, that the guest does not use otherwise.
pub fn spare(regions: &[Region]) -> Region {
    let own_end = (&raw const image_end) as u64;
    regions
        .iter()
        .map(|region| Region {
            start: region.start.max(own_end).next_multiple_of(4096),
            end: region.end.min(MAPPED_LIMIT) & !4095,
        })
        .max_by_key(|region| region.end.saturating_sub(region.start))
        .unwrap_or_default()
}
