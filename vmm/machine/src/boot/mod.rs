//! Boots a machine: loads the kernel, initrd and command line into guest memory, writes the tables
//! of the entry protocol, and sets the first vCPU's registers.

pub mod acpi;
mod bzimage;
mod elf;
mod entry;
mod error;
mod image;
mod images;
mod linux64;
mod map;
mod memory_map;
mod put;
mod pvh;
mod registers;
mod source;

pub use acpi::AcpiError;
pub use entry::Entry;
pub use error::BootError;
pub use images::{Boot, ContentHash, ContentId, Image};
pub use map::{Part, PlacedPart};

use std::path::Path;

use kemari_hypervisor::layout::{self, MmioWindow};
use kemari_hypervisor::memory::GuestMemory;
use kvm_ioctls::VcpuFd;

use self::image::Kernel;
use self::map::BootMap;
use self::put::put_slice;

/// The files to boot, and the machine that the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct BootConfig<'a> {
    /// A bzImage or a 64-bit ELF image. An ELF image is entered by its PVH note if it has one,
    /// otherwise by the 64-bit boot protocol.
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

/// Loads a boot into guest memory, which must be all zero, and returns how to enter the guest.
///
/// # Errors
/// See [`BootError`].
pub fn load(memory: &GuestMemory, config: &BootConfig<'_>) -> Result<Entry, BootError> {
    let boot = Boot::open(config.kernel, config.initrd, config.cmdline)?;
    load_open(memory, &boot, config.into(), &|| {})
}

/// Does what [`load`] does, with open files. Calls `progress` repeatedly while it reads them, which
/// may take long.
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
    // All ranges are claimed: guest memory is written from here on.
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

/// Writes the command line with its terminating NUL.
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
