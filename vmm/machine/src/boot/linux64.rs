//! The 64-bit Linux boot protocol (the Linux kernel's Documentation/arch/x86/boot.rst): the zero
//! page, and page tables that map the first 4 GiB one to one.

use kemari_hypervisor::layout;
use kemari_hypervisor::memory::GuestMemory;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::GuestAddress;

use super::entry::Initrd;
use super::error::BootError;
use super::memory_map::map_of;
use super::put::put_slice;

const BOOT_FLAG: u16 = 0xaa55;
/// `HdrS`.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// The loader type of a boot loader that has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1;
/// The alignment in the header that is made for an ELF image: some kernels read that header too.
const KERNEL_ALIGNMENT: u32 = 0x0100_0000;

pub(super) fn write_zero_page(
    memory: &GuestMemory,
    header: Option<setup_header>,
    cmdline_len: usize,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: header.unwrap_or_else(elf_header),
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE_ADDR as u32;
    if header.is_none() {
        params.hdr.cmdline_size = cmdline_len as u32 + 1;
    }
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.addr as u32;
        params.hdr.ramdisk_size = initrd.size as u32;
    }
    let map = map_of(memory);
    params.e820_entries = map.len() as u8;
    for (slot, e) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry { addr: e.addr, size: e.size, r#type: e.kind };
    }
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE_ADDR));
    LinuxBootConfigurator::write_bootparams(&params, memory)
        .map_err(|e| BootError::Write { addr: layout::ZERO_PAGE_ADDR, reason: e.to_string() })
}

/// A header for an ELF image, which has none of its own.
fn elf_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        loadflags: LOADED_HIGH,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..Default::default()
    }
}

const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;
const DIRECTORIES: u64 = 4;

/// Maps the first 4 GiB with 2 MiB pages. The protocol requires the kernel, the zero page and the
/// command line to be mapped; a bare-metal guest also uses the device windows at once.
pub(super) fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    let mut pdpt = Vec::new();
    for i in 0..DIRECTORIES {
        let directory = layout::BOOT_PD_ADDR + i * layout::PAGE_SIZE;
        let pages = (0..ENTRIES).map(|j| ((i * ENTRIES + j) << 21) | PRESENT_WRITABLE | LARGE_PAGE);
        put_slice(memory, &table(pages), directory)?;
        pdpt.push(directory | PRESENT_WRITABLE);
    }
    put_slice(memory, &table(pdpt.into_iter()), layout::BOOT_PDPT_ADDR)?;
    let top = [layout::BOOT_PDPT_ADDR | PRESENT_WRITABLE];
    put_slice(memory, &table(top.into_iter()), layout::BOOT_PML4_ADDR)
}

fn table(entries: impl Iterator<Item = u64>) -> Vec<u8> {
    entries.flat_map(u64::to_le_bytes).collect()
}
