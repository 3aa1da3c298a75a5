//! A bzImage: finds its protected-mode code by the setup header, and the memory for the unpacked
//! kernel (the Linux kernel's Documentation/arch/x86/boot.rst).

use kemari_hypervisor::layout;
use kemari_hypervisor::memory::GuestMemory;
use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::entry::Entry;
use super::error::BootError;
use super::map::{BootMap, Part};
use super::source::Source;

/// Offset of the setup header in the file.
const HEADER_AT: u64 = 0x1f1;
const HEADER_LEN: u64 = size_of::<setup_header>() as u64;
const SECTOR: u64 = 512;
/// The number of sectors for old kernels, which leave `setup_sects` zero.
const SETUP_SECTS_OF_OLD: u64 = 4;
/// The unit of `syssize` in bytes.
const PARAGRAPH: u64 = 16;
/// `loadflags`: the protected-mode code is loaded at 1 MiB or higher.
const LOADED_HIGH: u8 = 1;
/// Offset of the 64-bit entry from the start of a loaded bzImage ("64-bit BOOT PROTOCOL").
const ENTRY_64_OFFSET: u64 = 0x200;
/// `xloadflags`: the image has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// `xloadflags`: the kernel accepts its parameters and its initrd at any address.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;
/// First boot protocol version with `xloadflags`.
const PROTOCOL_2_12: u16 = 0x020c;
/// Highest address of an initrd for old kernels, which leave `initrd_addr_max` zero.
const INITRD_ADDR_MAX: u32 = 0x37ff_ffff;

/// An image with a checked header.
pub(super) struct BzImage {
    header: setup_header,
    /// Offset of the protected-mode code in the file, and its length.
    code_at: u64,
    code_len: u64,
}

impl BzImage {
    pub(super) fn read(source: &mut Source<'_>) -> Result<Self, BootError> {
        source.must_have("its setup header", HEADER_AT, HEADER_LEN)?;
        let mut header = setup_header::default();
        header.as_mut_slice().copy_from_slice(&source.bytes(HEADER_AT, HEADER_LEN)?);
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(source.damaged("a zImage, which is loaded below 1 MiB: expected a bzImage"));
        }
        if header.version < PROTOCOL_2_12 || header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(BootError::No64BitEntry { path: source.path.to_owned() });
        }
        let sectors = match u64::from(header.setup_sects) {
            0 => SETUP_SECTS_OF_OLD,
            sectors => sectors,
        };
        let code_at = (sectors + 1) * SECTOR;
        source.must_have("its setup code", 0, code_at)?;
        let declared = u64::from(header.syssize) * PARAGRAPH;
        source.must_have("its setup and protected-mode code", code_at, declared)?;
        let (packed_at, packed) = (header.payload_offset, header.payload_length);
        source.must_have(
            "its code and the packed kernel",
            code_at + u64::from(packed_at),
            u64::from(packed),
        )?;
        // Bytes after the code, for instance a signature, are loaded too: this does no harm.
        let code_len = source.len() - code_at;
        if code_len <= ENTRY_64_OFFSET && declared > 0 {
            return Err(source
                .damaged(format!("{code_len} bytes of code, which end before the entry point")));
        }
        Ok(Self { header, code_at, code_len })
    }

    /// The header, which the zero page passes back to the kernel.
    pub(super) fn header(&self) -> setup_header {
        self.header
    }

    fn load_addr(&self) -> u64 {
        u64::from(self.header.code32_start)
    }

    pub(super) fn entry(&self) -> Entry {
        Entry::Linux64 { rip: self.load_addr() + ENTRY_64_OFFSET }
    }

    /// End of the range that an initrd may use.
    pub(super) fn initrd_limit(&self) -> u64 {
        if self.header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0 {
            return layout::LOW_RAM_END;
        }
        match self.header.initrd_addr_max {
            0 => u64::from(INITRD_ADDR_MAX) + 1,
            max => u64::from(max) + 1,
        }
    }

    /// Claims the memory for the unpacked kernel: `init_size` bytes at its preferred address, or in
    /// place if that is higher. This range may overlap the image: the kernel first moves itself
    /// away.
    pub(super) fn claim(&self, source: &Source<'_>, map: &mut BootMap) -> Result<(), BootError> {
        let start = self.load_addr();
        if start < layout::HIGH_MEMORY_START {
            return Err(source.damaged(format!(
                "its code goes to {start:#x}, expected {:#x} or higher",
                layout::HIGH_MEMORY_START
            )));
        }
        let conflict = |conflict| BootError::conflict(source.path, conflict);
        map.claim(Part::Image, start, self.code_len).map_err(conflict)?;
        let loaded_end = start + self.code_len;
        let unpacked = start.max(self.header.pref_address);
        let unpacked_end = unpacked.saturating_add(u64::from(self.header.init_size));
        let beside = unpacked.max(loaded_end);
        map.claim(Part::Unpacked, beside, unpacked_end.saturating_sub(beside)).map_err(conflict)
    }

    pub(super) fn load(
        &self,
        source: &mut Source<'_>,
        memory: &GuestMemory,
    ) -> Result<(), BootError> {
        source.load(memory, self.code_at, self.load_addr(), self.code_len)
    }
}
