//! The ACPI tables (ACPI 6.5): a stock kernel finds in them its CPUs, interrupt controllers, serial
//! line and virtio-mmio windows, and the ways to power off and to reset.
//!
//! The tables are not "hardware-reduced": with that flag, Linux powers off by other registers than
//! PM1a, and `_S5` has no effect.

use acpi_tables::aml::{
    AddressSpace as Range, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed,
    Name, ONE, Package, PackageBuilder, ResourceTemplate, ZERO,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use kemari_hypervisor::layout::{self, MmioWindow};
use kemari_hypervisor::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

const OEM_ID: [u8; 6] = *b"KEMARI";
const OEM_TABLE_ID: [u8; 8] = *b"KEMARIVM";
const OEM_REVISION: u32 = 1;

/// FADT, IA-PC boot architecture flags: the ISA bus has devices (the serial line).
const LEGACY_DEVICES: u16 = 1;
/// FADT: there is no VGA, so the guest does not probe for it.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// FADT: there is no CMOS clock. Without this flag, Linux's rtc_cmos waits for the clock for 8-10
/// s. Bit 1, "8042 present", stays clear for the same reason: only the reset command of an 8042
/// exists.
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// MADT: the machine also has two 8259s.
const PCAT_COMPAT: u32 = 1;
/// MADT, interrupt source override: active high, level-triggered.
const ACTIVE_HIGH_LEVEL: u16 = 0xd;

/// Each table starts at a multiple of this many bytes.
const ALIGNMENT: u64 = 64;

/// Why the tables cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// The tables do not fit between 0xe0000 and 1 MiB.
    #[error(
        "the ACPI tables need {needed} bytes, expected at most {room}: use fewer devices or vCPUs"
    )]
    TooLarge {
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        room: u64,
    },
    /// The tables lie outside guest memory.
    #[error("cannot write the ACPI tables at {addr:#x}: {reason}: raise --memory")]
    Write {
        /// The address.
        addr: u64,
        /// The error from guest memory.
        reason: String,
    },
}

/// Writes all tables and returns the address of the RSDP, which comes first.
///
/// The tables describe a host bridge only if `pci` is set; those of a machine without PCI stay as
/// they are.
///
/// # Errors
/// When the tables do not fit, or guest memory cannot be written.
pub fn build(
    memory: &GuestMemory,
    windows: &[MmioWindow],
    pci: bool,
    cpus: u32,
) -> Result<u64, AcpiError> {
    let mut area = Area { next: layout::ACPI_START + ALIGNMENT, tables: Vec::new() };
    let facs = area.add(bytes(&FACS::new()));
    let dsdt = area.add(dsdt(windows, pci));
    let fadt = area.add(fadt(facs, dsdt));
    let madt = area.add(madt(cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.add(bytes(&xsdt));
    area.tables.push((layout::ACPI_START, bytes(&Rsdp::new(OEM_ID, xsdt))));
    area.write(memory)?;
    Ok(layout::ACPI_START)
}

/// Allocates addresses for tables in the ACPI area.
struct Area {
    next: u64,
    tables: Vec<(u64, Vec<u8>)>,
}

impl Area {
    fn add(&mut self, table: Vec<u8>) -> u64 {
        let addr = self.next;
        self.next = (addr + table.len() as u64).next_multiple_of(ALIGNMENT);
        self.tables.push((addr, table));
        addr
    }

    fn write(&self, memory: &GuestMemory) -> Result<(), AcpiError> {
        if self.next > layout::ACPI_END {
            return Err(AcpiError::TooLarge {
                needed: self.next - layout::ACPI_START,
                room: layout::ACPI_END - layout::ACPI_START,
            });
        }
        for (addr, table) in &self.tables {
            memory
                .write_slice(table, GuestAddress(*addr))
                .map_err(|e| AcpiError::Write { addr: *addr, reason: e.to_string() })?;
        }
        Ok(())
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The FADT with the power and reset registers. Uses 32-bit addresses only: if 64-bit ones were set
/// as well, the two would have to agree, and some kernels warn about either choice.
fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The machine has no sleep button and no wake-up by a clock. Its power button is fixed
        // hardware.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = (layout::SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(layout::PM1A_EVT_PORT).into();
    fadt.pm1_evt_len = layout::PM1A_EVT_LEN;
    fadt.pm1a_cnt_blk = u32::from(layout::PM1A_CNT_PORT).into();
    fadt.pm1_cnt_len = layout::PM1A_CNT_LEN;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(layout::I8042_PORT),
    );
    fadt.reset_value = layout::I8042_RESET;
    bytes(&fadt.finalize())
}

/// The MADT: one local APIC per CPU (its id is the CPU's index), one I/O APIC, and the SCI, which
/// is level-triggered.
fn madt(cpus: u32) -> Vec<u8> {
    let mut body = Vec::new();
    body.dword(layout::LAPIC_ADDR);
    body.dword(PCAT_COMPAT);
    for id in 0..cpus {
        // A VM has at most 254 CPUs, so `id` is a valid 8-bit APIC id.
        ProcessorLocalApic::new(id as u8, id as u8, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    IoApic::new(cpus as u8, layout::IOAPIC_ADDR, 0).to_aml_bytes(&mut body);
    // Interrupt source override (type 2, 10 bytes): bus 0 (ISA), source, global interrupt, flags.
    body.vec(&[2, 10, 0, layout::SCI_GSI as u8]);
    body.dword(layout::SCI_GSI);
    body.word(ACTIVE_HIGH_LEVEL);
    table(*b"APIC", 3, &body)
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    const HEADER: u32 = 36;
    let mut sdt = Sdt::new(signature, HEADER, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    sdt.append_slice(body);
    sdt.as_slice().to_vec()
}

fn dsdt(windows: &[MmioWindow], pci: bool) -> Vec<u8> {
    let mut body = Vec::new();
    // SLP_TYP for PM1a and for PM1b, and two reserved elements.
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&layout::S5_SLP_TYP, &layout::S5_SLP_TYP, &ZERO, &ZERO]),
    )
    .to_aml_bytes(&mut body);
    com1(&mut body);
    for (index, window) in windows.iter().enumerate() {
        virtio_mmio(&mut body, index, window);
    }
    if pci {
        pci_bus(&mut body);
    }
    table(*b"DSDT", 2, &body)
}

/// An edge-triggered, active-high interrupt that is not shared: as ISA devices and virtio-mmio
/// windows have.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn com1(sink: &mut Vec<u8>) {
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &edge(layout::COM1_GSI),
                    &IO::new(layout::COM1_PORT, layout::COM1_PORT, 1, layout::COM1_PORTS as u8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// A virtio-mmio window. Linux binds its virtio_mmio driver to the id `LNRO0005`.
fn virtio_mmio(sink: &mut Vec<u8>, index: usize, window: &MmioWindow) {
    let name = format!("_SB_.VM{index:02X}");
    Device::new(
        name.as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            // Cache-coherent DMA.
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    // All windows lie below 4 GiB (`layout.rs`).
                    &Memory32Fixed::new(true, window.base as u32, window.size as u32),
                    &edge(window.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// A host bridge with configuration mechanism #1, the ranges of its devices' windows, and their
/// interrupts: pin A of each device has an I/O APIC pin of its own. A route without a link device
/// is level-triggered and active low (PCI's INTx#; ACPI 6.5, 6.2.13); KVM ignores the polarity.
fn pci_bus(sink: &mut Vec<u8>) {
    let routes: Vec<[u32; 4]> = layout::pci_places()
        .map(|place| [u32::from(place.device) << 16 | 0xffff, 0, 0, place.gsi])
        .collect();
    let mut table = PackageBuilder::new();
    for route in &routes {
        table.add_element(&Package::new(route.iter().map(|field| field as &dyn Aml).collect()));
    }
    let memory_end = (layout::PCI_MMIO_BASE + layout::PCI_MMIO_SIZE - 1) as u32;
    let io_end = layout::PCI_IO_BASE + (layout::PCI_IO_SIZE - 1);
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_ADR".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            // Cache-coherent DMA.
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Range::new_bus_number(0_u16, 0),
                    &IO::new(
                        layout::PCI_CONFIG_PORT,
                        layout::PCI_CONFIG_PORT,
                        1,
                        layout::PCI_CONFIG_PORTS as u8,
                    ),
                    &Range::new_io(layout::PCI_IO_BASE, io_end, None),
                    &Range::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        layout::PCI_MMIO_BASE as u32,
                        memory_end,
                        None,
                    ),
                ]),
            ),
            &Name::new("_PRT".into(), &table),
        ],
    )
    .to_aml_bytes(sink);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kemari_hypervisor::memory::{MemoryOptions, create};

    use super::*;
    use std::process::Command;

    fn built(windows: usize, cpus: u32) -> GuestMemory {
        with_pci(windows, false, cpus)
    }

    fn with_pci(windows: usize, pci: bool, cpus: u32) -> GuestMemory {
        let memory = create(MemoryOptions { size: 2 << 20, huge_pages: false }).unwrap();
        let windows: Vec<_> = (0..windows).filter_map(layout::virtio_mmio_window).collect();
        assert_eq!(build(&memory, &windows, pci, cpus).unwrap(), layout::ACPI_START);
        memory
    }

    fn read(memory: &GuestMemory, addr: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        memory.read_slice(&mut buf, GuestAddress(addr)).unwrap();
        buf
    }

    fn read_table(memory: &GuestMemory, addr: u64) -> Vec<u8> {
        let len: u32 = memory.read_obj(GuestAddress(addr + 4)).unwrap();
        read(memory, addr, len as usize)
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |a, b| a.wrapping_add(*b))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Returns all tables that are reachable from the RSDP, as an operating system finds them.
    fn walk(memory: &GuestMemory) -> Vec<Vec<u8>> {
        let rsdp = read(memory, layout::ACPI_START, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(sum(&rsdp[..20]), 0);
        assert_eq!(sum(&rsdp), 0);
        let xsdt = read_table(memory, u64_at(&rsdp, 24));
        let mut tables: Vec<_> =
            xsdt[36..].chunks_exact(8).map(|a| read_table(memory, u64_at(a, 0))).collect();
        let dsdt = u64_at(&tables[0], 140);
        tables.push(read_table(memory, dsdt));
        tables.push(xsdt);
        tables
    }

    #[test]
    fn checksums_of_all_tables() {
        for (windows, cpus) in [(0, 1), (3, 2), (layout::VIRTIO_MMIO_MAX, 254)] {
            let tables = walk(&built(windows, cpus));
            let names: Vec<_> =
                tables.iter().map(|t| String::from_utf8_lossy(&t[..4]).into_owned()).collect();
            assert_eq!(names, ["FACP", "APIC", "DSDT", "XSDT"]);
            for table in &tables {
                assert_eq!(sum(table), 0, "checksum of {:?}", &table[..4]);
            }
        }
    }

    #[test]
    fn fadt_has_the_registers_of_the_layout() {
        let fadt = walk(&built(0, 1)).remove(0);
        assert_eq!(u32::from_le_bytes(fadt[56..60].try_into().unwrap()), 0x600);
        assert_eq!(u32::from_le_bytes(fadt[64..68].try_into().unwrap()), 0x604);
        assert_eq!((fadt[88], fadt[89]), (4, 2));
        assert_eq!(u16::from_le_bytes(fadt[109..111].try_into().unwrap()), 0x25);
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20), 0, "not hardware-reduced");
        assert_eq!(flags & (1 << 4), 0, "the power button is fixed hardware");
        assert_eq!(flags & (1 << 5), 1 << 5, "there is no sleep button");
        assert_eq!(flags & (1 << 10), 1 << 10, "has the reset register");
        // Reset register: system I/O, 8 bits, byte access, port 0x64, value 0xfe.
        assert_eq!(fadt[116..128], [1, 8, 0, 1, 0x64, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[128], 0xfe);
        let facs = u32::from_le_bytes(fadt[36..40].try_into().unwrap());
        assert_eq!(facs % 64, 0);
    }

    #[test]
    fn madt_lists_cpus_ioapic_and_sci() {
        let madt = walk(&built(0, 2)).remove(1);
        assert_eq!(madt[44..52], [0, 8, 0, 0, 1, 0, 0, 0]);
        assert_eq!(madt[52..60], [0, 8, 1, 1, 1, 0, 0, 0]);
        assert_eq!(madt[60..72], [1, 12, 2, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(madt[72..], [2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]);
    }

    /// ACPICA's own compiler reads the tables. Reports "not tested" if it is not installed.
    #[test]
    fn iasl_disassembles_the_tables() {
        if Command::new("iasl").arg("-v").output().is_err() {
            kemari_not_tested::not_tested("iasl is not installed (apt-get install acpica-tools)");
            return;
        }
        let tables = walk(&with_pci(2, true, 2));
        let dsdt = disassemble(&tables[2]);
        for expected in ["PNP0A03", "_PRT", "0x0001FFFF", "0x0002FFFF", "0x16", "0x17", "0x0CF8"] {
            assert!(dsdt.contains(expected), "{expected} is missing from:\n{dsdt}");
        }
        let without = disassemble(&walk(&built(2, 2))[2]);
        assert!(!without.contains("PCI0"), "{without}");
        for expected in [
            "_S5",
            "PNP0501",
            "LNRO0005",
            "0xD0000000",
            "0xD0001000",
            "0x00000005",
            "0x00000006",
            "Edge",
        ] {
            assert!(dsdt.contains(expected), "{expected} is missing from:\n{dsdt}");
        }
        let fadt = disassemble(&tables[0]);
        for expected in
            ["00000600", "00000604", "CMOS RTC Not Present (V5) : 1", "Hardware Reduced (V5) : 0"]
        {
            assert!(fadt.contains(expected), "{expected} is missing from:\n{fadt}");
        }
        let madt = disassemble(&tables[1]);
        assert!(madt.contains("[Interrupt Source Override]"), "{madt}");
    }

    fn disassemble(table: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("t.aml"), table).unwrap();
        let out =
            Command::new("iasl").args(["-d", "t.aml"]).current_dir(dir.path()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::read_to_string(dir.path().join("t.dsl")).unwrap()
    }
}
