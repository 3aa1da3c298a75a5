//! The part of ACPI that the guest needs: the list of its CPUs (ACPI 6.4: 5.2.5 root pointer, 5.2.7
//! and 5.2.8 root tables, 5.2.12 MADT).

use crate::physical::{read_u8, read_u32, read_u64};

const MADT_ENTRIES: u64 = 44;
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_X2APIC: u8 = 9;
const ENABLED: u32 = 1;

/// The contents of the MADT that the guest uses.
#[derive(Default)]
pub struct Processors {
    ids: [u32; crate::smp::MAX_CPUS],
    count: usize,
    /// The address of the I/O APIC.
    pub io_apic: Option<u64>,
}

impl Processors {
    /// The APIC IDs of the CPUs.
    pub fn ids(&self) -> &[u32] {
        &self.ids[..self.count]
    }

    fn add(&mut self, id: u32) {
        if self.count < self.ids.len() {
            self.ids[self.count] = id;
            self.count += 1;
        }
    }
}

/// The contents of the MADT, with the CPUs in its order; `None` if there is none.
pub fn processors(rsdp: u64) -> Option<Processors> {
    let madt = find(rsdp, *b"APIC")?;
    let end = madt + u64::from(read_u32(madt + 4));
    let mut processors = Processors::default();
    let mut entry = madt + MADT_ENTRIES;
    while entry + 2 <= end {
        let length = u64::from(read_u8(entry + 1)).max(2);
        match read_u8(entry) {
            LOCAL_APIC if read_u32(entry + 4) & ENABLED != 0 => {
                processors.add(u32::from(read_u8(entry + 3)));
            }
            LOCAL_X2APIC if read_u32(entry + 8) & ENABLED != 0 => {
                processors.add(read_u32(entry + 4));
            }
            IO_APIC if processors.io_apic.is_none() => {
                processors.io_apic = Some(u64::from(read_u32(entry + 4)));
            }
            _ => {}
        }
        entry += length;
    }
    Some(processors)
}

/// The address of the table with `signature`.
fn find(rsdp: u64, signature: [u8; 4]) -> Option<u64> {
    if rsdp == 0 || read_u64(rsdp) != u64::from_le_bytes(*b"RSD PTR ") {
        return None;
    }
    let extended = if read_u8(rsdp + 15) >= 2 { read_u64(rsdp + 24) } else { 0 };
    let (root, width) =
        if extended != 0 { (extended, 8) } else { (u64::from(read_u32(rsdp + 16)), 4) };
    let end = root + u64::from(read_u32(root + 4));
    let mut place = root + 36;
    while place + width <= end {
        let table = if width == 8 { read_u64(place) } else { u64::from(read_u32(place)) };
        if read_u32(table) == u32::from_le_bytes(signature) {
            return Some(table);
        }
        place += width;
    }
    None
}
