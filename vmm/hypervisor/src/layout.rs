//! The guest's address map: where RAM, device windows, I/O ports and boot structures lie, and why.
//!
//! Both machines of a pair use the same map; the handshake compares it, so a change here makes two
//! versions incompatible.

/// Guest page size in bytes; the unit of dirty tracking and of transfer.
pub const PAGE_SIZE: u64 = 4096;

/// First address after low RAM. 3 GiB leaves room below 4 GiB for device windows and interrupt
/// controllers, all of which have 32-bit addresses.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// First address of RAM that does not fit below the hole.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// First virtio-mmio window: inside the hole, 256 MiB above its start, so that low RAM may grow
/// without moving it.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Size of one virtio-mmio window in bytes: one page, so that page tables alone can give a window
/// to user space.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Upper bound of a machine's virtio-mmio windows: one per free I/O APIC pin.
pub const VIRTIO_MMIO_MAX: usize = VIRTIO_MMIO_GSIS.len();
/// The interrupt of each window. Not used: pins 0-4 (timer, keyboard, cascade, serial ports), 8
/// (clock chip), 9 (ACPI's SCI, a level-triggered pin that must not be shared with an
/// edge-triggered one), and the last two, which are PCI's and level-triggered.
const VIRTIO_MMIO_GSIS: [u32; 15] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21];

/// The PCI configuration ports: address and data (PCI 3.0, 3.2.2.3.2).
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// Number of PCI configuration ports.
pub const PCI_CONFIG_PORTS: u16 = 8;
/// First address of the memory windows of PCI devices: above the virtio-mmio windows, with room for
/// both.
pub const PCI_MMIO_BASE: u64 = 0xe000_0000;
/// Length of that range in bytes.
pub const PCI_MMIO_SIZE: u64 = 0x0100_0000;
/// First port of the I/O windows of PCI devices, where PC firmware puts them.
pub const PCI_IO_BASE: u16 = 0xc000;
/// Number of ports in that range.
pub const PCI_IO_SIZE: u16 = 0x1000;
/// Upper bound of a machine's PCI devices: one per I/O APIC pin that is reserved for PCI, so that
/// no line is shared.
pub const PCI_MAX: usize = PCI_GSIS.len();
/// The interrupts of PCI devices.
const PCI_GSIS: [u32; 2] = [22, 23];
/// Distance in bytes and in ports between two devices' windows, which must be smaller.
const PCI_MEMORY_STEP: u64 = 0x10_0000;
const PCI_IO_STEP: u16 = 0x100;

/// The windows of a PCI device at power-on, and its level-triggered interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciPlace {
    /// Its device number on bus 0.
    pub device: u8,
    /// First address of its memory window.
    pub memory: u64,
    /// First port of its I/O window.
    pub io: u16,
    /// The I/O APIC pin.
    pub gsi: u32,
}

/// The places of PCI devices; the host bridge is device 0.
pub fn pci_places() -> impl Iterator<Item = PciPlace> {
    (0_u8..).zip(PCI_GSIS).map(|(index, gsi)| PciPlace {
        device: index + 1,
        memory: PCI_MMIO_BASE + u64::from(index) * PCI_MEMORY_STEP,
        io: PCI_IO_BASE + u16::from(index) * PCI_IO_STEP,
        gsi,
    })
}

/// Address and interrupt of the virtio-mmio window `index`; `None`: the machine has no such window.
pub fn virtio_mmio_window(index: usize) -> Option<MmioWindow> {
    let gsi = *VIRTIO_MMIO_GSIS.get(index)?;
    Some(MmioWindow {
        base: VIRTIO_MMIO_BASE + index as u64 * VIRTIO_MMIO_SIZE,
        size: VIRTIO_MMIO_SIZE,
        gsi,
    })
}

/// One memory-mapped device window and its edge-triggered interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioWindow {
    /// First guest physical address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
    /// The I/O APIC pin.
    pub gsi: u32,
}

/// First port of the first serial line, as on a PC.
pub const COM1_PORT: u16 = 0x3f8;
/// Number of ports of one 16550.
pub const COM1_PORTS: u16 = 8;
/// Interrupt of the first serial line (IRQ 4 on a PC).
pub const COM1_GSI: u32 = 4;

/// ACPI PM1a event block: status (2 bytes) and enable (2 bytes).
pub const PM1A_EVT_PORT: u16 = 0x600;
/// Length of the PM1a event block in bytes.
pub const PM1A_EVT_LEN: u8 = 4;
/// ACPI PM1a control block: a write of `SLP_EN | 5 << 10` powers the machine off.
pub const PM1A_CNT_PORT: u16 = 0x604;
/// Length of the PM1a control block in bytes.
pub const PM1A_CNT_LEN: u8 = 2;
/// `SLP_TYP` of the soft-off state, as in the DSDT's `_S5`.
pub const S5_SLP_TYP: u8 = 5;
/// ACPI's system control interrupt, as on a PC.
pub const SCI_GSI: u32 = 9;

/// The real-time clock's window, above the virtio windows, whose number may grow.
pub const RTC_BASE: u64 = 0xd010_0000;
/// Length of the real-time clock's window: the 4 KiB of a PL031.
pub const RTC_SIZE: u64 = 0x1000;

/// The keyboard controller's data port.
pub const I8042_DATA_PORT: u16 = 0x60;
/// The keyboard controller's command port. There is no keyboard; a write of [`I8042_RESET`] resets
/// the machine.
pub const I8042_PORT: u16 = 0x64;
/// The command that pulses the reset line.
pub const I8042_RESET: u8 = 0xfe;

/// I/O APIC registers, at the PC's address: KVM's in-kernel I/O APIC cannot be moved.
pub const IOAPIC_ADDR: u32 = 0xfec0_0000;
/// Local APIC registers, at their reset address.
pub const LAPIC_ADDR: u32 = 0xfee0_0000;

/// One page for KVM's real-mode identity map on Intel, below the TSS (KVM API,
/// KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP_ADDR: u64 = 0xfffb_c000;
/// Three pages for KVM's TSS on Intel; must lie in the first 4 GiB and outside any slot (KVM API,
/// KVM_SET_TSS_ADDR).
pub const KVM_TSS_ADDR: u64 = 0xfffb_d000;

/// Boot GDT for the 64-bit entry: above the real-mode interrupt vectors, which end at 0x400, and
/// below the first page table.
pub const BOOT_GDT_ADDR: u64 = 0x500;
/// Size reserved for the boot GDT in bytes.
pub const BOOT_GDT_SIZE: u64 = 0x100;
/// PVH start info, in unused memory above the GDT.
pub const PVH_INFO_ADDR: u64 = 0x6000;
/// PVH module list (the initrd).
pub const PVH_MODULES_ADDR: u64 = 0x6040;
/// PVH memory map.
pub const PVH_MEMMAP_ADDR: u64 = 0x6800;
/// End of the PVH structures.
pub const PVH_INFO_END: u64 = 0x7000;
/// The "zero page" (`struct boot_params`) of the Linux boot protocol.
pub const ZERO_PAGE_ADDR: u64 = 0x7000;
/// Initial stack pointer. The page below it is free, and a kernel sets its own stack at once.
pub const BOOT_STACK_ADDR: u64 = 0x8ff0;
/// Lowest address of the stack, which grows down.
pub const BOOT_STACK_BOTTOM: u64 = 0x8000;
/// Boot page tables: PML4, one PDPT, four page directories that map the first 4 GiB one to one.
pub const BOOT_PML4_ADDR: u64 = 0x9000;
/// The page-directory-pointer table.
pub const BOOT_PDPT_ADDR: u64 = 0xa000;
/// First of four page directories (0xb000 to 0xefff).
pub const BOOT_PD_ADDR: u64 = 0xb000;
/// End of the boot page tables.
pub const BOOT_PD_END: u64 = 0xf000;
/// The kernel's command line.
pub const CMDLINE_ADDR: u64 = 0x2_0000;
/// Maximum length of the command line with its terminating NUL, in bytes: Linux's own
/// COMMAND_LINE_SIZE on x86.
pub const CMDLINE_MAX: usize = 2048;

/// End of conventional memory, where a PC's extended BIOS data area begins. The guest's memory map
/// ends its first range of usable RAM here.
pub const EBDA_START: u64 = 0x9_fc00;
/// Start of the ACPI tables, with the RSDP first: operating systems search for it in this area.
pub const ACPI_START: u64 = 0xe_0000;
/// End of the ACPI area.
pub const ACPI_END: u64 = 0x10_0000;
/// First address of RAM above the PC's hole; kernels are loaded here or higher.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// Address ranges of RAM for a guest with `size` bytes, ascending: `(start, length)`.
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    if size <= LOW_RAM_END {
        vec![(0, size)]
    } else {
        vec![(0, LOW_RAM_END), (HIGH_RAM_START, size - LOW_RAM_END)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_around_the_hole() {
        assert_eq!(ram_ranges(256 << 20), [(0, 256 << 20)]);
        assert_eq!(ram_ranges(LOW_RAM_END), [(0, LOW_RAM_END)]);
        assert_eq!(ram_ranges(4 << 30), [(0, 3 << 30), (HIGH_RAM_START, 1 << 30)]);
    }

    #[test]
    fn windows_have_pins_of_their_own() {
        let windows: Vec<_> = (0..VIRTIO_MMIO_MAX).filter_map(virtio_mmio_window).collect();
        assert_eq!(windows.len(), VIRTIO_MMIO_MAX);
        assert_eq!(windows[0].base, 0xd000_0000);
        assert_eq!(windows[0].gsi, 5);
        for (i, w) in windows.iter().enumerate() {
            assert!(w.gsi != SCI_GSI && w.gsi != COM1_GSI && w.gsi < 24);
            assert!(w.base + w.size <= u64::from(IOAPIC_ADDR));
            assert!(windows[..i].iter().all(|o| o.gsi != w.gsi && o.base + o.size <= w.base));
            assert!(w.base + w.size <= RTC_BASE);
        }
        const { assert!(RTC_BASE + RTC_SIZE <= PCI_MMIO_BASE) };
        const { assert!(PCI_MMIO_BASE + PCI_MMIO_SIZE <= IOAPIC_ADDR as u64) };
        for place in pci_places() {
            assert!(place.gsi < 24 && windows.iter().all(|w| w.gsi != place.gsi));
            assert!(place.memory + PCI_MEMORY_STEP <= PCI_MMIO_BASE + PCI_MMIO_SIZE);
            assert!(place.io + PCI_IO_STEP <= PCI_IO_BASE + PCI_IO_SIZE);
        }
        assert_eq!(pci_places().count(), PCI_MAX);
        assert_eq!(virtio_mmio_window(VIRTIO_MMIO_MAX), None);
    }
}
