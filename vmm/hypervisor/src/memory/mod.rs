//! Guest RAM: maps it into this process for KVM, and finds its changed pages.

mod dirty;
mod dirty_set;
mod hot;
mod kvm_log;
mod limits;
mod page_reader;

pub use dirty::DirtyTracker;
pub use io_gate_memory::{GuestMemory, PageBitmap};
pub use kvm_log::DirtyError;
pub(crate) use kvm_log::KvmLog;
pub use limits::{LimitError, begin, check_limits, scarce};
pub use page_reader::PageReader;

use std::fs::File;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::layout;

/// Why guest memory cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is zero or not a multiple of the page size.
    #[error(
        "guest memory of {size} bytes: expected a multiple of 4 KiB, at least 2 MiB: change --memory"
    )]
    BadSize {
        /// The requested size in bytes.
        size: u64,
    },
    /// The host has less memory available than the guest needs.
    #[error("guest memory {}, host has {} available: lower --memory", mib(*.wanted), mib(*.available))]
    TooLarge {
        /// The requested bytes.
        wanted: u64,
        /// The available bytes.
        available: u64,
    },
    /// The host's available memory cannot be read.
    #[error("cannot read the host's available memory from /proc/meminfo: {0}")]
    Meminfo(String),
    /// A limit of this process is too low.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// `mmap` failed.
    #[error("cannot map {} of guest memory: {reason}: lower --memory or raise the limit on locked or virtual memory", mib(*.size))]
    Map {
        /// Size of the region in bytes.
        size: u64,
        /// The error from vm-memory or the kernel.
        reason: String,
    },
}

/// A number of bytes for messages: whole GiB from 10 GiB on, otherwise MiB.
fn mib(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

/// Options of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryOptions {
    /// Size of RAM in bytes.
    pub size: u64,
    /// Request transparent huge pages: fewer faults and cheaper copies, but each page fault touches
    /// more memory.
    pub huge_pages: bool,
}

/// Maps guest RAM at the addresses of [`layout::ram_ranges`], all zero.
///
/// The mapping is private, anonymous and not reserved: pages that the guest never touches cost
/// nothing, and no other process can change pages behind dirty tracking (P8).
///
/// # Errors
/// When this host or this process cannot have this size, or `mmap` fails.
pub fn create(options: MemoryOptions) -> Result<GuestMemory, MemoryError> {
    check_limits(options.size, 1)?;
    check_size(options.size, available_memory()?)?;
    map_regions(options, |_| None)
}

/// Does what [`create`] does, for a machine that never runs. It touches almost no memory, so the
/// host needs none free.
pub(crate) fn create_scratch(size: u64) -> Result<GuestMemory, MemoryError> {
    map_regions(MemoryOptions { size, huge_pages: false }, |_| None)
}

/// Does what [`create`] does, in a file that other processes can map. Calls `open` to create the
/// file once the size is checked. Other processes' writes are not tracked, so such a guest cannot
/// be protected.
///
/// # Errors
/// See [`MemoryError`], and the error of `open`.
pub fn create_in_file<E: From<MemoryError>>(
    options: MemoryOptions,
    open: impl FnOnce(u64) -> Result<File, E>,
) -> Result<GuestMemory, E> {
    limits::check_addresses(options.size, 1).map_err(MemoryError::from)?;
    check_size(options.size, available_memory()?)?;
    let file = Arc::new(open(options.size)?);
    let options = MemoryOptions { huge_pages: false, ..options };
    Ok(map_regions(options, |offset| Some(FileOffset::from_arc(Arc::clone(&file), offset)))?)
}

/// Maps each range; `backing` returns the file and offset of a region, given the bytes of RAM
/// before it.
fn map_regions(
    options: MemoryOptions,
    backing: impl Fn(u64) -> Option<FileOffset>,
) -> Result<GuestMemory, MemoryError> {
    let mut regions = Vec::new();
    let mut before = 0;
    for (start, len) in layout::ram_ranges(options.size) {
        regions.push(map_region(start, len, backing(before), options.huge_pages)?);
        before += len;
    }
    GuestMemory::from_regions(regions)
        .map_err(|e| MemoryError::Map { size: options.size, reason: e.to_string() })
}

fn check_size(size: u64, available: u64) -> Result<(), MemoryError> {
    if size < 2 << 20 || !size.is_multiple_of(layout::PAGE_SIZE) {
        return Err(MemoryError::BadSize { size });
    }
    if size > available {
        return Err(MemoryError::TooLarge { wanted: size, available });
    }
    Ok(())
}

fn map_region(
    start: u64,
    len: u64,
    backing: Option<FileOffset>,
    huge_pages: bool,
) -> Result<GuestRegionMmap<PageBitmap>, MemoryError> {
    let fail = |reason: String| MemoryError::Map { size: len, reason };
    let bitmap = PageBitmap::new(len as usize);
    let builder = MmapRegionBuilder::new_with_bitmap(len as usize, bitmap)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let mapping = match backing {
        None => builder.with_mmap_flags(private),
        Some(file) => builder.with_file_offset(file).with_mmap_flags(libc::MAP_SHARED),
    }
    .build()
    .map_err(|e| fail(e.to_string()))?;
    // Exclude guest memory from core dumps: it is large, and its content is private to the guest.
    advise(&mapping, libc::MADV_DONTDUMP, "MADV_DONTDUMP");
    if huge_pages {
        advise(&mapping, libc::MADV_HUGEPAGE, "MADV_HUGEPAGE");
    }
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| fail("the region ends beyond the address space".into()))
}

/// Gives the kernel advice. Only logs a refusal: a kernel may lack huge pages.
fn advise(mapping: &vm_memory::MmapRegion<PageBitmap>, advice: libc::c_int, name: &str) {
    // SAFETY: the range is exactly the mapping just made, which outlives the call; neither piece of
    // advice changes the contents of memory.
    let ret = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), advice) };
    if ret != 0 {
        log::warn!("guest memory: {name}: {}", std::io::Error::last_os_error());
    }
}

/// Bytes of memory that the host can give without swapping, as the kernel estimates.
fn available_memory() -> Result<u64, MemoryError> {
    let text = std::fs::read_to_string("/proc/meminfo")
        .map_err(|e| MemoryError::Meminfo(e.to_string()))?;
    parse_available(&text).ok_or_else(|| MemoryError::Meminfo("it has no MemAvailable line".into()))
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Size of RAM in `memory`, in bytes.
pub fn total_size(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn too_much_memory_names_both_sides_and_the_flag() {
        let error = check_size(64 << 30, 23 << 30).unwrap_err().to_string();
        assert_eq!(error, "guest memory 64 GiB, host has 23 GiB available: lower --memory");
        assert!(matches!(
            create(MemoryOptions { size: 1 << 60, huge_pages: false }),
            Err(MemoryError::TooLarge { .. })
        ));
        assert!(matches!(check_size(5000, 1 << 30), Err(MemoryError::BadSize { .. })));
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(parse_available("MemTotal: 9 kB\nMemAvailable:   8 kB\n"), Some(8192));
        assert_eq!(parse_available("MemTotal: 9 kB\n"), None);
        assert!(available_memory().unwrap() > 0);
    }

    #[test]
    fn memory_around_the_hole_is_mapped_and_zero() {
        // The mapping is not reserved: a little more than 3 GiB costs nothing until it is touched.
        let size = layout::LOW_RAM_END + (8 << 20);
        if available_memory().unwrap() < size {
            kemari_not_tested::not_tested(&format!(
                "the host has less than {} available",
                mib(size)
            ));
            return;
        }
        let memory = create(MemoryOptions { size, huge_pages: true }).unwrap();
        assert_eq!(total_size(&memory), size);
        let high = GuestAddress(layout::HIGH_RAM_START + 4096);
        assert_eq!(memory.read_obj::<u64>(high).unwrap(), 0);
        memory.write_obj(7u64, high).unwrap();
        assert_eq!(memory.read_obj::<u64>(high).unwrap(), 7);
        assert!(memory.read_obj::<u64>(GuestAddress(layout::LOW_RAM_END)).is_err());
    }
}
