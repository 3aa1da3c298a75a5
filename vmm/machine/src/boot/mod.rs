//! From a kernel file to a machine that is ready to run: loads the image, initrd and command line into guest memory, writes
//! the tables of the entry protocol, and sets the first vCPU's registers.

pub mod acpi;
mod bzimage;
mod elf;
mod error;
mod image;
mod images;
mod linux64;
mod map;
mod pvh;
mod registers;
mod source;

pub use acpi::AcpiError;
pub use error::BootError;
pub use images::{Boot, ContentHash, ContentId, Image};
pub use map::{Claim, Part};

use std::path::Path;

use kemari_hypervisor::layout::{self, MmioWindow};
use kemari_hypervisor::memory::{self, GuestMemory};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use self::image::Kernel;
use self::map::BootMap;

/// What to boot, and the machine that the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct BootConfig<'a> {
    /// A bzImage or a 64-bit ELF image (with the PVH note, or entered by the 64-bit boot protocol).
    pub kernel: &'a Path,
    /// An initial RAM disk.
    pub initrd: Option<&'a Path>,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Number of vCPUs.
    pub cpus: u32,
    /// The virtio-mmio windows that hold a device.
    pub windows: &'a [MmioWindow],
    /// Whether there is a PCI bus.
    pub pci: bool,
}

/// The machine that the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct BootMachine<'a> {
    /// Number of vCPUs.
    pub cpus: u32,
    /// The virtio-mmio windows that hold a device.
    pub windows: &'a [MmioWindow],
    /// Whether there is a PCI bus.
    pub pci: bool,
}

impl<'a> From<&BootConfig<'a>> for BootMachine<'a> {
    fn from(config: &BootConfig<'a>) -> Self {
        Self { cpus: config.cpus, windows: config.windows, pci: config.pci }
    }
}

/// How the first vCPU enters the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// PVH: 32-bit protected mode without paging, EBX points to the start info.
    Pvh {
        /// Where execution starts.
        rip: u64,
    },
    /// The 64-bit Linux boot protocol: long mode, RSI points to the zero page.
    Linux64 {
        /// Where execution starts.
        rip: u64,
    },
}

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Initrd {
    addr: u64,
    size: u64,
}

/// Loads everything into guest memory, which must be all zero, and returns how to enter it.
///
/// # Errors
/// See [`BootError`].
pub fn load(memory: &GuestMemory, config: &BootConfig<'_>) -> Result<Entry, BootError> {
    let boot = Boot::open(config.kernel, config.initrd, config.cmdline)?;
    load_open(memory, &boot, config.into(), &|| {})
}

/// As [`load`], with files that are open already. Calls `progress` repeatedly while it reads them, which may take long.
///
/// # Errors
/// See [`BootError`].
pub fn load_open(
    memory: &GuestMemory,
    boot: &Boot,
    machine: BootMachine<'_>,
    progress: &dyn Fn(),
) -> Result<Entry, BootError> {
    let mut map = BootMap::new(memory);
    let mut source = boot.kernel.source(progress)?;
    let kernel = Kernel::read(&mut source)?;
    kernel.claim(&source, &mut map)?;
    let mut initrd = match &boot.initrd {
        None => None,
        Some(image) => {
            let source = image.source(progress)?;
            Some((image::claim_initrd(&source, &kernel, &mut map)?, source))
        }
    };
    // From here on guest memory is written: every range has been claimed.
    write_cmdline(memory, &boot.cmdline, kernel.cmdline_max())?;
    kernel.load(&mut source, memory)?;
    if let Some((place, source)) = &mut initrd {
        source.load(memory, 0, place.addr, place.size)?;
    }
    let initrd = initrd.map(|(place, _)| place);
    let rsdp = acpi::build(memory, machine.windows, machine.pci, machine.cpus)?;
    let entry = kernel.entry();
    match entry {
        Entry::Pvh { .. } => pvh::write_start_info(memory, initrd, rsdp)?,
        Entry::Linux64 { .. } => {
            let cmdline_len = boot.cmdline.len();
            linux64::write_zero_page(memory, kernel.setup_header(), cmdline_len, initrd, rsdp)?;
            linux64::write_page_tables(memory)?;
        }
    }
    registers::write_gdt(memory, entry)?;
    Ok(entry)
}

/// Sets the first vCPU's registers; the other vCPUs wait for their start-up interrupt.
///
/// # Errors
/// When KVM refuses them.
pub fn set_entry_registers(fd: &VcpuFd, entry: Entry) -> Result<(), BootError> {
    registers::set(fd, entry)
}

/// Writes the command line with its NUL.
fn write_cmdline(memory: &GuestMemory, cmdline: &str, max: usize) -> Result<(), BootError> {
    if cmdline.len() > max {
        return Err(BootError::CmdlineTooLong { found: cmdline.len(), max });
    }
    if cmdline.bytes().any(|b| b == 0) {
        return Err(BootError::CmdlineNul);
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    put_slice(memory, &bytes, layout::CMDLINE_ADDR)
}

/// One entry of the guest's memory map; both protocols use the E820 numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MapEntry {
    addr: u64,
    size: u64,
    kind: u32,
}

const MAP_RAM: u32 = 1;
const MAP_RESERVED: u32 = 2;

/// The memory map: conventional memory, the ACPI area, RAM from 1 MiB, RAM from 4 GiB.
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

fn map_of(memory: &GuestMemory) -> Vec<MapEntry> {
    memory_map(memory::total_size(memory))
}

fn put_slice(memory: &GuestMemory, bytes: &[u8], addr: u64) -> Result<(), BootError> {
    memory
        .write_slice(bytes, GuestAddress(addr))
        .map_err(|e| BootError::Write { addr, reason: e.to_string() })
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
