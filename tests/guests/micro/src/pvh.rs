//! The loader's information in the PVH start info (`struct hvm_start_info` in Xen's
//! `arch-x86/hvm/start_info.h`): RAM, command line and ACPI root.

use crate::memory::Region;
use crate::physical::{read_u8, read_u32, read_u64};

const MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;
const MAX_REGIONS: usize = 16;
const MAX_COMMAND_LINE: usize = 4096;

/// A copy of the loader's information. The guest may overwrite the original.
pub struct BootInfo {
    regions: [Region; MAX_REGIONS],
    region_count: usize,
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_len: usize,
    /// The address of the ACPI root pointer; 0 if the loader names none.
    pub rsdp: u64,
}

impl BootInfo {
    /// Reads the start info at `address`.
    pub fn read(address: u64) -> Self {
        let magic = read_u32(address);
        let (version, map, entries) =
            (read_u32(address + 4), read_u64(address + 40), read_u32(address + 48));
        assert!(magic == MAGIC, "PVH start info: expected magic {MAGIC:#x}, found {magic:#x}");
        assert!(version >= 1 && map != 0, "PVH start info version {version} has no memory map");
        let mut info = Self {
            regions: [Region::default(); MAX_REGIONS],
            region_count: 0,
            command_line: [0; MAX_COMMAND_LINE],
            command_line_len: 0,
            rsdp: read_u64(address + 32),
        };
        info.copy_command_line(read_u64(address + 24));
        for entry in 0..u64::from(entries) {
            info.add_region(map + entry * 24);
        }
        info
    }

    fn copy_command_line(&mut self, address: u64) {
        if address == 0 {
            return;
        }
        for offset in 0..MAX_COMMAND_LINE {
            let byte = read_u8(address + offset as u64);
            if byte == 0 {
                return;
            }
            self.command_line[offset] = byte;
            self.command_line_len = offset + 1;
        }
    }

    fn add_region(&mut self, entry: u64) {
        let (start, size, kind) = (read_u64(entry), read_u64(entry + 8), read_u32(entry + 16));
        if kind == TYPE_RAM && self.region_count < MAX_REGIONS {
            self.regions[self.region_count] = Region { start, end: start + size };
            self.region_count += 1;
        }
    }

    /// The ranges of RAM.
    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.region_count]
    }

    /// The command line, up to the first byte that is not UTF-8 text.
    pub fn command_line(&self) -> &str {
        let bytes = &self.command_line[..self.command_line_len];
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}
