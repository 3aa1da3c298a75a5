//! The memory map for a kernel: the ranges that are RAM, and those that the kernel may not use.

use kemari_hypervisor::layout;
use kemari_hypervisor::memory::{self, GuestMemory};

/// One entry of the guest's memory map. Both entry protocols use the E820 numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapEntry {
    pub(super) addr: u64,
    pub(super) size: u64,
    pub(super) kind: u32,
}

const MAP_RAM: u32 = 1;
const MAP_RESERVED: u32 = 2;

/// The memory map of a guest with `size` bytes: conventional memory, the ACPI area, RAM from 1 MiB,
/// RAM from 4 GiB.
fn memory_map(size: u64) -> Vec<MapEntry> {
    let ram = |addr, end: u64| MapEntry { addr, size: end - addr, kind: MAP_RAM };
    let mut map = vec![
        ram(0, layout::EBDA_START),
        MapEntry {
            addr: layout::ACPI_START,
            size: layout::ACPI_END - layout::ACPI_START,
            kind: MAP_RESERVED,
        },
    ];
    for (start, len) in layout::ram_ranges(size) {
        map.push(ram(start.max(layout::HIGH_MEMORY_START), start + len));
    }
    map
}

/// The memory map for this guest memory.
pub(super) fn map_of(memory: &GuestMemory) -> Vec<MapEntry> {
    memory_map(memory::total_size(memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_map_skips_the_holes() {
        let map = memory_map(5 << 30);
        assert_eq!(map.len(), 4);
        assert_eq!(map[0], MapEntry { addr: 0, size: layout::EBDA_START, kind: MAP_RAM });
        assert_eq!(map[2].addr, 1 << 20);
        assert_eq!(map[2].addr + map[2].size, layout::LOW_RAM_END);
        assert_eq!((map[3].addr, map[3].size), (4 << 30, 2 << 30));
        assert!(map.windows(2).all(|w| w[0].addr + w[0].size <= w[1].addr));
    }
}
