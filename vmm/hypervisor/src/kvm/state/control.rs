//! The control part of a vCPU's state, by which KVM decides whether to accept it: modes, attributes
//! of segments, control and model-specific registers, headers.
//!
//! It leaves out contents that any processor accepts (general registers, vectors, counters, the low
//! bits of addresses), so that two states of a guest at its usual work mostly have the same control
//! part.
//!
//! P4: a state whose control part was seen before is not tried again. So the part includes
//! everything that KVM is not known to accept with any value. Including too much only costs a
//! trial.

use kvm_bindings::{kvm_dtable, kvm_segment};
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::VcpuState;

/// MXCSR's flags record past exceptions; the processor checks the other bits (SDM, volume 1,
/// 10.2.3).
const MXCSR_FLAGS: u32 = 0x3f;
/// Byte offsets of MXCSR and its mask in the legacy area, and of the XSAVE header (SDM, volume 1,
/// 13.4).
const MXCSR: usize = 24;
const XSAVE_HEADER: std::ops::Range<usize> = 512..576;
/// The local APIC's own id, in its register page.
const APIC_ID: std::ops::Range<usize> = 0x20..0x24;

impl VcpuState {
    /// A hash of the control part.
    pub fn control_part(&self) -> u64 {
        let sregs = &self.sregs;
        let segments = [
            &sregs.cs, &sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss, &sregs.tr, &sregs.ldt,
        ]
        .map(segment);
        let tables =
            [&sregs.gdt, &sregs.idt].map(|table: &kvm_dtable| (upper(table.base), table.limit));
        // CR3 without the bits that select a page table, and without the PCID.
        let control =
            (sregs.cr0, upper(sregs.cr2), sregs.cr3 >> 40, sregs.cr4, sregs.cr8, sregs.efer);
        let debug = (self.debugregs.dr6, self.debugregs.dr7, self.debugregs.flags);
        let xcrs: Vec<(u32, u64)> = self
            .xcrs
            .iter()
            .flat_map(|xcrs| {
                xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).map(|xcr| (xcr.xcr, xcr.value))
            })
            .collect();
        let msrs: Vec<(u32, u64)> =
            self.msrs.iter().map(|&(index, data)| (index, decisive(index, data))).collect();
        let interrupts = (sregs.interrupt_bitmap.map(u64::count_ones), self.mp_state.mp_state);
        hash(&(
            (segments, tables, control, sregs.apic_base, interrupts),
            (self.xsave_part(), xcrs, debug, msrs),
            (self.events_part(), &self.lapic.regs[APIC_ID], self.tsc_khz),
        ))
    }

    fn xsave_part(&self) -> (u32, u32, [u64; 8]) {
        let word = |at: usize| {
            let byte = |at| u32::from(self.xsave.get(at).copied().unwrap_or(0));
            (0..4).fold(0, |word, place| word | byte(at + place) << (8 * place))
        };
        let header = std::array::from_fn(|index| {
            let at = XSAVE_HEADER.start + 8 * index;
            u64::from(word(at)) | u64::from(word(at + 4)) << 32
        });
        (word(MXCSR) & !MXCSR_FLAGS, word(MXCSR + 4), header)
    }

    fn events_part(&self) -> impl Serialize + use<> {
        let events = &self.events;
        let (exception, interrupt) = (&events.exception, &events.interrupt);
        (
            (exception.injected, exception.nr, exception.has_error_code, exception.pending),
            (interrupt.injected, interrupt.soft, interrupt.shadow),
            (events.nmi.injected, events.nmi.pending, events.nmi.masked),
            (events.smi.smm, events.smi.pending, events.smi.smm_inside_nmi, events.flags),
        )
    }
}

fn hash(part: &impl Serialize) -> u64 {
    xxh3_64(&postcard::to_allocvec(part).expect("numbers can always be written"))
}

fn segment(segment: &kvm_segment) -> impl Serialize + use<> {
    let kvm_segment {
        base,
        limit,
        selector: _,
        type_,
        present,
        dpl,
        db,
        s,
        l,
        g,
        avl,
        unusable,
        ..
    } = *segment;
    (upper(base), limit, (type_, present, dpl, db, s), (l, g, avl, unusable))
}

/// The bits of an address that decide whether a processor accepts it as canonical.
fn upper(address: u64) -> u64 {
    address >> 47
}

/// The part of a model-specific register's value that KVM may refuse.
fn decisive(index: u32, data: u64) -> u64 {
    match index {
        // Counters: the TSC, its deadline, APERF and MPERF, Intel's and AMD's performance counters.
        0x10 | 0x6e0 | 0xe7 | 0xe8 | 0xc1..=0xc8 | 0x309..=0x30c | 0x4c1..=0x4c8 => 0,
        0xc001_0004..=0xc001_0007 => 0,
        0xc001_0201 | 0xc001_0203 | 0xc001_0205 | 0xc001_0207 | 0xc001_0209 | 0xc001_020b => 0,
        // FS.base, GS.base and the kernel's GS.base change at every thread switch of the guest.
        0xc000_0100..=0xc000_0102 => upper(data),
        _ => data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> VcpuState {
        VcpuState { msrs: vec![(0x10, 5), (0xc000_0100, 0x7f00_0000_1000)], ..VcpuState::default() }
    }

    #[test]
    fn a_guest_at_its_work_has_it_alike() {
        let before = state();
        let mut after = state();
        after.regs.rip = 0x1234;
        after.sregs.cr3 = 0x7_f000;
        after.sregs.fs.base = 0x7f00_1234_5000;
        after.msrs = vec![(0x10, 99), (0xc000_0100, 0x7f00_1234_5000)];
        after.xsave = vec![0; 1024];
        after.xsave[160] = 7;
        after.lapic.regs[0x390] = 9;
        assert_eq!(before.control_part(), after.control_part());
    }

    #[test]
    fn what_kvm_looks_at_tells_states_apart() {
        let changes: [fn(&mut VcpuState); 14] = [
            |state| state.sregs.cs.l = 1,
            |state| state.sregs.ss.unusable = 1,
            |state| state.sregs.efer = 1 << 10,
            |state| state.sregs.cr4 = 1 << 5,
            |state| state.sregs.cr3 = 1 << 60,
            |state| state.sregs.gdt.base = 1 << 60,
            |state| state.sregs.apic_base = 0xfee0_0900,
            |state| state.msrs.push((0x4d4d_4d4d, 7)),
            |state| state.msrs[1].1 = 1 << 63,
            |state| state.xsave = [vec![0; 513], vec![1]].concat(),
            |state| state.xsave = [vec![0; 26], vec![1]].concat(),
            |state| state.debugregs.dr7 = 1 << 40,
            |state| state.events.exception.nr = 14,
            |state| state.mp_state.mp_state = 3,
        ];
        let mut seen = vec![state().control_part()];
        for change in changes {
            let mut changed = state();
            change(&mut changed);
            let part = changed.control_part();
            assert!(!seen.contains(&part), "change {}", seen.len());
            seen.push(part);
        }
    }
}
