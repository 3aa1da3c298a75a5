//! 64-bit mode for tiny guests that have no kernel to enter it.

use kvm_bindings::{kvm_segment, kvm_sregs};

/// Flags of a page table entry: present, writable, allowed for user mode.
pub const USER_PAGE: u64 = 7;
/// Flag of a page directory entry that maps 2 MiB.
pub const LARGE_PAGE: u64 = 1 << 7;

/// Prepares a vCPU for 64-bit code at privilege level `ring`, with its page tables at `cr3`.
pub fn long_mode(sregs: &mut kvm_sregs, ring: u8, cr3: u64) {
    let data = kvm_segment {
        limit: 0xffff_ffff,
        selector: if ring == 3 { 0x2b } else { 0x18 },
        type_: 3,
        present: 1,
        dpl: ring,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: if ring == 3 { 0x33 } else { 0x10 },
        type_: 11,
        l: 1,
        db: 0,
        ..data
    };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr =
        kvm_segment { limit: 0x67, selector: 0x40, type_: 11, present: 1, ..Default::default() };
    sregs.cr3 = cr3;
    sregs.cr4 |= 1 << 5; // PAE
    sregs.cr0 |= 1 | 1 << 31; // protected mode, paging
    sregs.efer |= 1 << 8 | 1 << 10; // long mode enabled and active
}
