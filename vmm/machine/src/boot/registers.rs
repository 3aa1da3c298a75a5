//! The first vCPU's registers at the guest's entry, and the descriptor table that they refer to.

use kemari_hypervisor::layout;
use kemari_hypervisor::memory::GuestMemory;
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::entry::Entry;
use super::error::BootError;
use super::put::put_slice;

/// Selectors of the Linux boot protocol: __BOOT_CS and __BOOT_DS.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;
const GDT_ENTRIES: usize = 5;

const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TSS: u64 = 0x0000_8b00_0000_0067;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always one.
const RFLAGS_RESERVED: u64 = 2;

fn is_long_mode(entry: Entry) -> bool {
    matches!(entry, Entry::Linux64 { .. })
}

pub(super) fn write_gdt(memory: &GuestMemory, entry: Entry) -> Result<(), BootError> {
    let code = if is_long_mode(entry) { CODE64 } else { CODE32 };
    let gdt: [u64; GDT_ENTRIES] = [0, 0, code, DATA, TSS];
    let bytes: Vec<u8> = gdt.iter().flat_map(|e| e.to_le_bytes()).collect();
    put_slice(memory, &bytes, layout::BOOT_GDT_ADDR)
}

pub(super) fn set(fd: &VcpuFd, entry: Entry) -> Result<(), BootError> {
    let fail = |call| {
        move |e: kvm_ioctls::Error| BootError::Registers {
            call,
            source: std::io::Error::from_raw_os_error(e.errno()),
        }
    };
    let mut sregs = fd.get_sregs().map_err(fail("KVM_GET_SREGS"))?;
    set_segments(&mut sregs, is_long_mode(entry));
    set_control(&mut sregs, is_long_mode(entry));
    fd.set_sregs(&sregs).map_err(fail("KVM_SET_SREGS"))?;
    fd.set_regs(&general(entry)).map_err(fail("KVM_SET_REGS"))
}

fn general(entry: Entry) -> kvm_regs {
    let mut regs =
        kvm_regs { rflags: RFLAGS_RESERVED, rsp: layout::BOOT_STACK_ADDR, ..Default::default() };
    match entry {
        Entry::Pvh { rip } => {
            regs.rip = rip;
            regs.rbx = layout::PVH_INFO_ADDR;
        }
        Entry::Linux64 { rip } => {
            regs.rip = rip;
            regs.rsi = layout::ZERO_PAGE_ADDR;
        }
    }
    regs
}

fn set_segments(sregs: &mut kvm_sregs, long_mode: bool) {
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        selector: BOOT_DS,
        type_: 3, // data, writable, accessed
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: BOOT_CS,
        type_: 11, // code, readable, accessed
        l: u8::from(long_mode),
        db: u8::from(!long_mode),
        ..flat
    };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = flat;
    }
    // Intel's VMX enters a guest only if its task register holds a busy TSS.
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: BOOT_TSS,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    sregs.gdt = kvm_dtable {
        base: layout::BOOT_GDT_ADDR,
        limit: (GDT_ENTRIES * 8 - 1) as u16,
        ..Default::default()
    };
    // No interrupt table: the guest is entered with interrupts off and sets its own.
    sregs.idt = kvm_dtable::default();
}

fn set_control(sregs: &mut kvm_sregs, long_mode: bool) {
    if long_mode {
        sregs.cr3 = layout::BOOT_PML4_ADDR;
        sregs.cr4 |= CR4_PAE;
        sregs.cr0 |= CR0_PE | CR0_PG;
        sregs.efer |= EFER_LME | EFER_LMA;
    } else {
        sregs.cr0 = CR0_PE | CR0_ET;
        sregs.cr4 = 0;
    }
}
