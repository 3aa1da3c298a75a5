//! The start info of the PVH boot protocol (`struct hvm_start_info`): memory map, command line,
//! initrd and ACPI.

use kemari_hypervisor::layout;
use kemari_hypervisor::memory::GuestMemory;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::entry::Initrd;
use super::error::BootError;
use super::memory_map::map_of;

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the highest bit set.
const MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const VERSION: u32 = 1;

pub(super) fn write_start_info(
    memory: &GuestMemory,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), BootError> {
    let map: Vec<_> = map_of(memory)
        .into_iter()
        .map(|e| hvm_memmap_table_entry { addr: e.addr, size: e.size, type_: e.kind, reserved: 0 })
        .collect();
    let modules: Vec<_> = initrd
        .into_iter()
        .map(|i| hvm_modlist_entry { paddr: i.addr, size: i.size, ..Default::default() })
        .collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: modules.len() as u32,
        // An address of 0 means "none".
        modlist_paddr: if modules.is_empty() { 0 } else { layout::PVH_MODULES_ADDR },
        cmdline_paddr: layout::CMDLINE_ADDR,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMMAP_ADDR,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::PVH_INFO_ADDR));
    params.set_sections(&map, GuestAddress(layout::PVH_MEMMAP_ADDR));
    if !modules.is_empty() {
        params.set_modules(&modules, GuestAddress(layout::PVH_MODULES_ADDR));
    }
    PvhBootConfigurator::write_bootparams(&params, memory)
        .map_err(|e| BootError::Write { addr: layout::PVH_INFO_ADDR, reason: e.to_string() })
}
