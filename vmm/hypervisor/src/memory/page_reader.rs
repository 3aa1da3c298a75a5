//! Reads pages of guest memory in ascending order: looks the region up only when it changes, not
//! for each page.

use vm_memory::bitmap::BS;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress,
    VolatileSlice,
};

use super::{GuestMemory, PageBitmap};

const PAGE_SIZE: usize = crate::layout::PAGE_SIZE as usize;

/// Reads pages of one guest's memory.
pub struct PageReader<'m> {
    memory: &'m GuestMemory,
    /// The region of the last page read.
    at: Option<Region<'m>>,
}

struct Region<'m> {
    start: u64,
    bytes: VolatileSlice<'m, BS<'m, PageBitmap>>,
}

impl<'m> PageReader<'m> {
    /// Makes a reader of `memory`.
    #[must_use]
    pub fn new(memory: &'m GuestMemory) -> Self {
        Self { memory, at: None }
    }

    /// Reads the page at `address`.
    ///
    /// # Errors
    /// When the page is not in guest memory.
    pub fn read(
        &mut self,
        address: u64,
        page: &mut [u8; PAGE_SIZE],
    ) -> Result<(), GuestMemoryError> {
        if let Some(slice) = self.at.as_ref().and_then(|region| region.page(address)) {
            slice.copy_to(&mut page[..]);
            return Ok(());
        }
        let outside = || GuestMemoryError::InvalidGuestAddress(GuestAddress(address));
        let region = self.memory.find_region(GuestAddress(address)).ok_or_else(outside)?;
        let bytes = region.get_slice(MemoryRegionAddress(0), region.len() as usize)?;
        let found = Region { start: region.start_addr().0, bytes };
        found.page(address).ok_or_else(outside)?.copy_to(&mut page[..]);
        self.at = Some(found);
        Ok(())
    }
}

impl<'m> Region<'m> {
    fn page(&self, address: u64) -> Option<VolatileSlice<'m, BS<'m, PageBitmap>>> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        self.bytes.subslice(offset, PAGE_SIZE).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MemoryOptions, create};
    use vm_memory::Bytes;

    #[test]
    fn pages_are_read_in_any_region_and_nowhere_else() {
        let size = crate::layout::LOW_RAM_END + (4 << 20);
        let memory =
            create(MemoryOptions { size, huge_pages: false }).expect("little of it is touched");
        let high = crate::layout::HIGH_RAM_START;
        let addresses = [0, 0x5000, crate::layout::LOW_RAM_END - 0x1000, high, high + 0x3000];
        for address in addresses {
            memory
                .write_obj(address + 7, GuestAddress(address + 8))
                .expect("it is in guest memory");
        }
        let mut reader = PageReader::new(&memory);
        let mut page = [0; PAGE_SIZE];
        for address in addresses {
            reader.read(address, &mut page).expect("it is in guest memory");
            assert_eq!(page[8..16], (address + 7).to_le_bytes());
        }
        assert!(reader.read(crate::layout::LOW_RAM_END, &mut page).is_err());
        assert!(reader.read(high + (4 << 20), &mut page).is_err());
    }
}
