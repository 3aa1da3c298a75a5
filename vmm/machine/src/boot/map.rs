//! The map of a boot: the claimed ranges of guest memory, and the part that claims each.
//!
//! Before the guest runs, each part that goes into guest memory first claims its range: each
//! segment of the kernel with its zeros, the memory for an unpacked bzImage, the structures of the
//! entry protocol, the initrd. A claim outside RAM, or over another claim, fails before anything is
//! written.

use std::fmt;
use std::ops::Range;

use kemari_hypervisor::layout;
use kemari_hypervisor::memory::GuestMemory;
use vm_memory::{Address, GuestMemoryBackend};

use super::entry::Entry;

/// The ranges for a kernel and its initrd: conventional memory and low RAM. RAM above the hole
/// cannot be used: the entry protocols address the initrd with 32 bits and map the first 4 GiB.
const CONVENTIONAL: Range<u64> = 0..layout::EBDA_START;
const LOW_RAM: Range<u64> = layout::HIGH_MEMORY_START..layout::LOW_RAM_END;

/// What claims a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A segment of an ELF image, by the index of its program header.
    Segment(usize),
    /// A bzImage as loaded from the file.
    Image,
    /// The unpacked bzImage.
    Unpacked,
    /// A structure of the entry protocol.
    Structure(&'static str),
    /// The initrd.
    Initrd,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Segment(index) => write!(f, "segment {index}"),
            Part::Image => f.write_str("the protected-mode code"),
            Part::Unpacked => f.write_str("the unpacked kernel"),
            Part::Structure(name) => f.write_str(name),
            Part::Initrd => f.write_str("the initrd"),
        }
    }
}

/// A part with its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedPart {
    /// The part.
    pub part: Part,
    /// The range.
    pub range: Range<u64>,
}

impl fmt::Display for PlacedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#x} to {:#x})", self.part, self.range.start, self.range.end)
    }
}

/// Why a range cannot be claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    /// This guest's memory ends too early; a larger guest has RAM there.
    BeyondMemory { needed: u64, end: u64 },
    /// No guest has usable RAM there.
    NoRam(PlacedPart),
    /// Another part has claimed the range.
    Taken { wanted: PlacedPart, by: PlacedPart },
}

/// The claimed ranges.
#[derive(Debug)]
pub(super) struct BootMap {
    /// First address after this guest's low RAM.
    end: u64,
    taken: Vec<PlacedPart>,
}

impl BootMap {
    /// A map without claims.
    pub(super) fn new(memory: &GuestMemory) -> Self {
        let end = memory.last_addr().raw_value().saturating_add(1).min(layout::LOW_RAM_END);
        Self { end, taken: Vec::new() }
    }

    /// Claims the structures of `entry`.
    pub(super) fn claim_structures(&mut self, entry: Entry) -> Result<(), Conflict> {
        for (name, start, len) in structures(entry) {
            self.claim(Part::Structure(name), start, len)?;
        }
        Ok(())
    }

    /// Claims `len` bytes from `start`. A range beyond this guest's memory is allowed, and
    /// [`fits`](Self::fits) refuses it later. A length of zero claims nothing.
    pub(super) fn claim(&mut self, part: Part, start: u64, len: u64) -> Result<(), Conflict> {
        if len == 0 {
            return Ok(());
        }
        // A range that wraps around ends outside RAM and fails below.
        let wanted = PlacedPart { part, range: start..start.saturating_add(len) };
        let lies_in = |ram: Range<u64>| ram.start <= start && wanted.range.end <= ram.end;
        if !lies_in(CONVENTIONAL) && !lies_in(LOW_RAM) {
            return Err(Conflict::NoRam(wanted));
        }
        if let Some(by) = self.taken.iter().find(|claim| overlap(&claim.range, &wanted.range)) {
            return Err(Conflict::Taken { wanted, by: by.clone() });
        }
        self.taken.push(wanted);
        Ok(())
    }

    /// Checks that this guest's memory contains all claims. Call it last: after the advice to raise
    /// the memory, no other refusal must follow.
    pub(super) fn fits(&self) -> Result<(), Conflict> {
        let needed = self.highest();
        if needed > self.end {
            return Err(Conflict::BeyondMemory { needed, end: self.end });
        }
        Ok(())
    }

    /// First address after this guest's low RAM.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// First address after the highest claimed range.
    pub(super) fn highest(&self) -> u64 {
        self.taken.iter().map(|claim| claim.range.end).max().unwrap_or(0)
    }

    /// The highest page-aligned start of `len` free bytes, above 1 MiB and ending at or below
    /// `limit`, in a guest whose low RAM ends at `end`.
    pub(super) fn highest_room(&self, len: u64, limit: u64, end: u64) -> Option<u64> {
        let mut top = limit.min(end);
        loop {
            let start = top.checked_sub(len)? & !(layout::PAGE_SIZE - 1);
            if start < layout::HIGH_MEMORY_START {
                return None;
            }
            let range = start..start + len;
            // Continue below the lowest obstacle: no gap between it and `top` is large enough.
            let obstacle = self.taken.iter().filter(|claim| overlap(&claim.range, &range));
            match obstacle.map(|claim| claim.range.start).min() {
                None => return Some(start),
                Some(below) => top = below,
            }
        }
    }

    /// The smallest end of low RAM with which [`highest_room`](Self::highest_room) finds room;
    /// `None`: no guest has room.
    pub(super) fn end_for(&self, len: u64, limit: u64) -> Option<u64> {
        self.highest_room(len, limit, layout::LOW_RAM_END)?;
        let page_end = |end: u64| end.next_multiple_of(layout::PAGE_SIZE);
        let ends =
            self.taken.iter().map(|claim| claim.range.end).chain([layout::HIGH_MEMORY_START]);
        ends.map(|end| page_end(end).saturating_add(len))
            .filter(|end| self.highest_room(len, limit, *end).is_some())
            .min()
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Name, address and length of the structures of `entry`. The ACPI tables and the other addresses
/// below 1 MiB without RAM are missing: nothing can claim them, see [`CONVENTIONAL`].
fn structures(entry: Entry) -> Vec<(&'static str, u64, u64)> {
    let mut list = vec![
        ("the boot descriptor table", layout::BOOT_GDT_ADDR, layout::BOOT_GDT_SIZE),
        (
            "the first stack",
            layout::BOOT_STACK_BOTTOM,
            layout::BOOT_STACK_ADDR - layout::BOOT_STACK_BOTTOM,
        ),
        ("the command line", layout::CMDLINE_ADDR, layout::CMDLINE_MAX as u64),
    ];
    match entry {
        Entry::Pvh { .. } => list.push((
            "the PVH start info",
            layout::PVH_INFO_ADDR,
            layout::PVH_INFO_END - layout::PVH_INFO_ADDR,
        )),
        Entry::Linux64 { .. } => list.extend([
            ("the zero page", layout::ZERO_PAGE_ADDR, layout::PAGE_SIZE),
            (
                "the boot page tables",
                layout::BOOT_PML4_ADDR,
                layout::BOOT_PD_END - layout::BOOT_PML4_ADDR,
            ),
        ]),
    }
    list
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn map(end: u64) -> BootMap {
        BootMap { end, taken: Vec::new() }
    }

    #[test]
    fn structures_lie_in_ram_beside_each_other() {
        for entry in [Entry::Pvh { rip: 0 }, Entry::Linux64 { rip: 0 }] {
            let mut map = map(2 << 20);
            map.claim_structures(entry).unwrap();
            assert!(map.highest() <= layout::EBDA_START);
        }
    }

    #[test]
    fn room_is_the_highest_and_never_taken() {
        let mut map = map(16 << 20);
        for (start, len) in [(2 << 20, 0x1001), (8 << 20, 1 << 20), (15 << 20, 0x8_0000)] {
            map.claim(Part::Image, start, len).unwrap();
        }
        for (len, limit, expected) in [
            (0x8_0000, u64::MAX, Some(0xf8_0000)),
            (0x8_0001, u64::MAX, Some(0xe7_f000)),
            (0x10_0000, 9 << 20, Some(0x70_0000)),
            (6 << 20, u64::MAX, Some(9 << 20)),
            ((6 << 20) + 1, u64::MAX, None),
            (1 << 20, 2 << 20, Some(1 << 20)),
            (1 << 20, (2 << 20) - 1, None),
        ] {
            assert_eq!(
                map.highest_room(len, limit, map.end),
                expected,
                "{len:#x} below {limit:#x}"
            );
        }
        assert_eq!(map.end_for((6 << 20) + 1, u64::MAX), Some(0xf8_0000 + (6 << 20) + 1));
        assert_eq!(map.end_for(3 << 30, u64::MAX), None);
    }
}
