//! Measures the cost of finding the dirty pages, by size of memory and by number of pages, for
//! people. Run each test by name (`cargo test --release -p kemari-hypervisor --test dirty_cost --
//! --ignored --nocapture --test-threads 1`).
//!
//! No test judges a time. Each checks that its interface finds the pages that the guest wrote.
#![allow(clippy::unwrap_used, missing_docs)] // the macros that name requests write no docs

mod common;

use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{CODE, DONE, Event, enter, handler, open, run};
use kemari_hypervisor::kvm::{VcpuSet, Vm, VmOptions};
use kemari_hypervisor::layout::{HIGH_RAM_START, LOW_RAM_END};
use kemari_hypervisor::memory::{self, GuestMemory, MemoryOptions, PageBitmap};
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_PAGE_OFFSET,
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_gfn, kvm_enable_cap, kvm_regs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr, ioctl_iowr_nr};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SIZES: [u64; 4] = [256 * MIB, GIB, 4 * GIB, 16 * GIB];
const COUNTS: [u64; 5] = [0, 16, 128, 1024, 8192];
/// First address of the dirtied pages; the code and the page tables lie below.
const FIRST: u64 = 4 * MIB;

const KVMIO: u32 = 0xae;
ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_bindings::kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

/// `1: mov [rdi], rcx; add rdi, rdx; dec rcx; jnz 1b; mov [rbx], rcx; jmp $`
const WRITE_PAGES: &[u8] = &[
    0x48, 0x89, 0x0f, 0x48, 0x01, 0xd7, 0x48, 0xff, 0xc9, 0x75, 0xf5, 0x48, 0x89, 0x0b, 0xeb, 0xfe,
];

/// Memory with the code and page tables for ring 3, which map the first 20 GiB one to one.
fn guest_memory(size: u64, huge_pages: bool) -> GuestMemory {
    // Present, writable, user, accessed and dirty: the processor then need not write to the tables.
    const FLAGS: u64 = 0x67;
    const LARGE: u64 = 1 << 7;
    const PML4: u64 = 0x2000;
    const PDPT: u64 = 0x3000;
    const PDS: u64 = 0x10_0000;
    let memory = memory::create(MemoryOptions { size, huge_pages }).unwrap();
    let put = |value: u64, addr: u64| memory.write_obj(value, GuestAddress(addr)).unwrap();
    memory.write_slice(WRITE_PAGES, GuestAddress(CODE)).unwrap();
    put(PDPT | FLAGS, PML4);
    for gib in 0..20 {
        let pd = PDS + gib * PAGE;
        put(pd | FLAGS, PDPT + gib * 8);
        for i in 0..512 {
            put(((gib << 30) + (i << 21)) | FLAGS | LARGE, pd + i * 8);
        }
    }
    memory
}

/// The pages that the guest writes: rows of equally spaced pages, none across the hole below 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    Together,
    Spread,
}

#[derive(Clone, Copy)]
struct Row {
    start: u64,
    count: u64,
    stride: u64,
}

impl Row {
    fn spread(start: u64, end: u64, count: u64) -> Row {
        Row { start, count, stride: (end - start) / count.max(1) / PAGE * PAGE }
    }

    fn regs(self) -> kvm_regs {
        kvm_regs {
            rdi: self.start,
            rcx: self.count,
            rdx: self.stride,
            rbx: DONE,
            ..Default::default()
        }
    }

    fn page_numbers(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |i| (self.start + i * self.stride) / PAGE)
    }
}

fn rows(pattern: Pattern, size: u64, count: u64) -> Vec<Row> {
    let rows = match pattern {
        Pattern::Together => vec![Row { start: FIRST, count, stride: PAGE }],
        Pattern::Spread if size <= LOW_RAM_END => vec![Row::spread(FIRST, size, count)],
        Pattern::Spread => {
            let low = count * LOW_RAM_END / size;
            let end = HIGH_RAM_START + size - LOW_RAM_END;
            vec![
                Row::spread(FIRST, LOW_RAM_END, low),
                Row::spread(HIGH_RAM_START, end, count - low),
            ]
        }
    };
    rows.into_iter().filter(|row| row.count > 0).collect()
}

/// The patterns that fit this machine: with huge pages, each touched page far from others takes 2
/// MiB.
fn cases(size: u64, huge_pages: bool) -> impl Iterator<Item = (Pattern, u64)> {
    let all = COUNTS.into_iter().flat_map(|count| {
        [(Pattern::Together, count), (Pattern::Spread, count)]
            .into_iter()
            .take(1 + count.min(1) as usize)
    });
    all.filter(move |&(pattern, count)| {
        pattern == Pattern::Together || !huge_pages || size <= GIB || count * 2 * MIB <= 2 * GIB
    })
}

fn looks(count: u64) -> usize {
    if count > 1000 { 60 } else { 300 }
}

/// Durations; displayed as median and 99th percentile in microseconds.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn time<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = f();
        self.0.push(start.elapsed());
        result
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at =
            |part: f64| sorted[((sorted.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
        write!(f, "{:.1} / {:.1}", at(0.5), at(0.99))
    }
}

/// Measures the product's own collector.
#[test]
#[ignore = "a measurement"]
fn a_look() {
    println!(
        "| memory | huge pages | dirty pages | a look p50 / p99 us |\n| --- | --- | --- | --- |"
    );
    let kvm = open();
    for (huge_pages, size) in [false, true].into_iter().flat_map(|h| SIZES.map(|s| (h, s))) {
        let memory = guest_memory(size, huge_pages);
        let vm = Vm::new(&kvm, memory, VmOptions { cpus: 1, pit: true }).unwrap();
        let (handler, events) = handler();
        let set = VcpuSet::spawn(vm.create_vcpus().unwrap(), handler).unwrap();
        vm.start_dirty_log().unwrap();
        let mut tracker = vm.dirty_tracker();
        for (pattern, count) in cases(size, huge_pages) {
            let rows = rows(pattern, size, count);
            let expected: Vec<u64> = rows.iter().flat_map(|row| row.page_numbers()).collect();
            let mut times = Times::default();
            for look in 0..=looks(count) {
                for row in &rows {
                    set.with_vcpu(0, |fd| enter(fd, row.regs())).unwrap();
                    assert_eq!(run(&set, &events), Event::Done(0));
                }
                let begun = Instant::now();
                let page_numbers = tracker.collect().unwrap();
                times.0.push(begun.elapsed());
                if look == 0 {
                    // Ignore the first run: it maps pages, and KVM may report a page as dirty when
                    // it is read.
                    times.0.clear();
                } else {
                    assert_eq!(page_numbers, expected);
                }
            }
            println!("| {} MiB | {huge_pages} | {count} {pattern:?} | {times} |", size / MIB);
        }
    }
}

/// Measures marks of this process's own writes: vm-memory's bitmap against the product's.
#[test]
#[ignore = "a measurement"]
fn own_bitmap() {
    println!("| memory | dirty pages | vm-memory: mark a page, take | ours: mark a page, take |");
    println!("| --- | --- | --- | --- |");
    for size in SIZES {
        let theirs = AtomicBitmap::new(size as usize, (PAGE as usize).try_into().unwrap());
        let ours = PageBitmap::new(size as usize);
        for count in COUNTS {
            let row = Row::spread(0, size, count);
            let pages: Vec<usize> = row.page_numbers().map(|number| number as usize).collect();
            let mut times: [Times; 4] = Default::default();
            for _ in 0..300 {
                let offsets = || pages.iter().map(|page| page * PAGE as usize);
                times[0].time(|| offsets().for_each(|at| theirs.mark_dirty(at, 64)));
                let words = times[1].time(|| theirs.get_and_reset());
                let found: usize = words.iter().map(|word| word.count_ones() as usize).sum();
                assert_eq!(found, pages.len());
                times[2].time(|| offsets().for_each(|at| ours.mark_dirty(at, 64)));
                let mut found = 0;
                times[3].time(|| ours.take(|_, bits| found += bits.count_ones() as usize));
                assert_eq!(found, pages.len());
            }
            let [mark, take, mark_ours, take_ours] = times;
            println!(
                "| {} MiB | {count} | {mark}, {take} | {mark_ours}, {take_ours} |",
                size / MIB
            );
        }
    }
}

/// A VM with one vCPU on this thread: no layer lies between KVM and the measurement.
struct Raw {
    vm: VmFd,
    vcpu: VcpuFd,
    slots: Vec<(u64, Vec<u64>)>,
    ring: Option<Ring>,
    _memory: GuestMemory,
}

/// A vCPU's ring of dirty pages (KVM API 8.29).
struct Ring {
    entries: NonNull<kvm_dirty_gfn>,
    next: usize,
}

const RING_ENTRIES: usize = 65536;
const ENTRY_DIRTY: u32 = 1;
const ENTRY_RESET: u32 = 2;

impl Ring {
    fn of(vcpu: &VcpuFd) -> Ring {
        // SAFETY: a new mapping of the ring that was enabled for this vCPU with that many entries;
        // it lives until this is dropped.
        let entries = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RING_ENTRIES * size_of::<kvm_dirty_gfn>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE as i64,
            )
        };
        assert_ne!(entries, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Ring { entries: NonNull::new(entries.cast()).unwrap(), next: 0 }
    }

    /// Reports all dirty entries and marks them, so that KVM may reset them.
    fn harvest(&mut self, mut found: impl FnMut(u32, u64)) -> i32 {
        let mut count = 0;
        loop {
            // SAFETY: the index is inside the mapping, which lives on.
            let entry = unsafe { self.entries.add(self.next % RING_ENTRIES) }.as_ptr();
            // SAFETY: aligned, mapped, and the kernel's half is written before the flag that is
            // read here.
            let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
            if flags.load(Ordering::Acquire) & ENTRY_DIRTY == 0 {
                return count;
            }
            // SAFETY: as above; KVM does not touch the entry before it is reset.
            let (slot, offset) = unsafe { ((*entry).slot, (*entry).offset) };
            found(slot, offset);
            flags.store(ENTRY_RESET, Ordering::Release);
            self.next += 1;
            count += 1;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping of `of`, which nothing points into any more.
        unsafe {
            libc::munmap(self.entries.as_ptr().cast(), RING_ENTRIES * size_of::<kvm_dirty_gfn>())
        };
    }
}

impl Raw {
    fn new(kvm: &Kvm, size: u64, huge_pages: bool, with_ring: bool) -> Raw {
        let memory = guest_memory(size, huge_pages);
        let vm = kvm.create_vm().unwrap();
        vm.set_tss_address(kemari_hypervisor::layout::KVM_TSS_ADDR as usize).unwrap();
        let mut cap = kvm_enable_cap::default();
        if with_ring {
            cap.cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL;
            cap.args[0] = (RING_ENTRIES * size_of::<kvm_dirty_gfn>()) as u64;
        } else {
            cap.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
            cap.args[0] = 1;
        }
        vm.enable_cap(&cap).unwrap();
        vm.create_irq_chip().unwrap();
        let mut slots = Vec::new();
        for (slot, region) in (0..).zip(memory.iter()) {
            let pages = region.len() / PAGE;
            slots.push((pages, vec![0; pages.div_ceil(64) as usize]));
            let slot = kvm_userspace_memory_region {
                slot,
                flags: KVM_MEM_LOG_DIRTY_PAGES,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.get_mmap().as_ptr() as u64,
            };
            // SAFETY: mapped memory of that size, which this object keeps.
            unsafe { vm.set_user_memory_region(slot) }.unwrap();
        }
        let vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
        let ring = with_ring.then(|| Ring::of(&vcpu));
        Raw { vm, vcpu, slots, ring, _memory: memory }
    }

    /// Makes the guest write the pages of `row`, and leaves no access pending.
    fn write(&mut self, row: Row) {
        enter(&self.vcpu, row.regs());
        match self.vcpu.run().unwrap() {
            VcpuExit::MmioWrite(DONE, _) => {}
            other => panic!("{other:?}"),
        }
        self.vcpu.set_kvm_immediate_exit(1);
        assert!(self.vcpu.run().is_err());
        self.vcpu.set_kvm_immediate_exit(0);
    }

    fn get(&mut self) {
        for (slot, (_, words)) in (0..).zip(&mut self.slots) {
            let mut request = kvm_bindings::kvm_dirty_log { slot, ..Default::default() };
            request.__bindgen_anon_1.dirty_bitmap = words.as_mut_ptr().cast();
            // SAFETY: `words` has a bit for each page of the slot.
            let ret = unsafe { ioctl_with_mut_ref(&self.vm, KVM_GET_DIRTY_LOG(), &mut request) };
            assert_eq!(ret, 0);
        }
    }

    /// Clears the pages that were read, in spans with gaps of at most `gap` words; returns the
    /// number of calls.
    fn clear(&self, gap: usize) -> usize {
        let mut calls = 0;
        for (slot, (pages, words)) in (0..).zip(&self.slots) {
            let mut at = 0;
            while let Some(first) = words[at..].iter().position(|&w| w != 0).map(|i| i + at) {
                let mut end = first + 1;
                while let Some(next) = words[end..words.len().min(end.saturating_add(gap + 1))]
                    .iter()
                    .position(|&w| w != 0)
                {
                    end += next + 1;
                }
                self.clear_span(slot, *pages, first, &words[first..end]);
                calls += 1;
                at = end;
            }
        }
        calls
    }

    fn clear_span(&self, slot: u32, pages: u64, first: usize, words: &[u64]) {
        let first_page = first as u64 * 64;
        let request = kvm_clear_dirty_log {
            slot,
            num_pages: (words.len() as u64 * 64).min(pages - first_page) as u32,
            first_page,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: words.as_ptr().cast_mut().cast(),
            },
        };
        // SAFETY: KVM reads the words of `words`.
        let ret = unsafe { ioctl_with_ref(&self.vm, KVM_CLEAR_DIRTY_LOG(), &request) };
        assert_eq!(ret, 0);
    }

    fn reset_rings(&self, count: i32) {
        let mut left = count;
        while left > 0 {
            // SAFETY: the ioctl has no argument.
            let done = unsafe { ioctl(&self.vm, KVM_RESET_DIRTY_RINGS()) };
            assert!(done > 0, "{}", std::io::Error::last_os_error());
            left -= done;
        }
    }
}

/// Measures each part of KVM's two interfaces alone.
#[test]
#[ignore = "a measurement"]
fn bitmap_against_ring() {
    println!(
        "| memory | huge pages | dirty pages | GET | scan | CLEAR one span | CLEAR gaps 512 | CLEAR gaps 64 | harvest | RESET | \
         guest with bitmap | with ring |"
    );
    println!("|{}", " --- |".repeat(12));
    let kvm = open();
    for (huge_pages, size) in [false, true].into_iter().flat_map(|h| SIZES.map(|s| (h, s))) {
        for (pattern, count) in cases(size, huge_pages) {
            let rows = rows(pattern, size, count);
            let (get, scan, clears, guest) = bitmap(&kvm, size, huge_pages, &rows, count);
            let (harvest, reset, guest_ring) = ring(&kvm, size, huge_pages, &rows, count);
            let [one, far, near] = clears;
            println!(
                "| {} MiB | {huge_pages} | {count} {pattern:?} | {get} | {scan} | {one} | {far} | {near} | {harvest} | \
                 {reset} | {guest} | {guest_ring} |",
                size / MIB
            );
        }
    }
}

fn bitmap(
    kvm: &Kvm,
    size: u64,
    huge_pages: bool,
    rows: &[Row],
    count: u64,
) -> (Times, Times, [Times; 3], Times) {
    let mut raw = Raw::new(kvm, size, huge_pages, false);
    let (mut get, mut scan, mut guest) = (Times::default(), Times::default(), Times::default());
    let mut clears: [Times; 3] = Default::default();
    for row in rows {
        raw.write(*row);
    }
    raw.get();
    raw.clear(usize::MAX - 1);
    for look in 0..looks(count) {
        guest.time(|| rows.iter().for_each(|row| raw.write(*row)));
        get.time(|| raw.get());
        let found = scan.time(|| {
            let chunks = raw.slots.iter().flat_map(|(_, words)| words.chunks(64));
            chunks.filter(|chunk| chunk.iter().fold(0, |any, word| any | word) != 0).count()
        });
        assert!(found as u64 <= count);
        let found: u64 =
            raw.slots.iter().flat_map(|s| &s.1).map(|w| u64::from(w.count_ones())).sum();
        assert_eq!(found, count);
        let (gap, times) =
            [usize::MAX - 1, 512, 64].into_iter().zip(&mut clears).nth(look % 3).unwrap();
        times.time(|| raw.clear(gap));
    }
    (get, scan, clears, guest)
}

fn ring(kvm: &Kvm, size: u64, huge_pages: bool, rows: &[Row], count: u64) -> (Times, Times, Times) {
    let mut raw = Raw::new(kvm, size, huge_pages, true);
    let mut ring = raw.ring.take().unwrap();
    let (mut harvest, mut reset, mut guest) =
        (Times::default(), Times::default(), Times::default());
    let mut pages: Vec<(u32, u64)> = Vec::new();
    for look in 0..=looks(count) {
        if look == 1 {
            harvest.0.clear();
            reset.0.clear();
            guest.0.clear();
        }
        guest.time(|| rows.iter().for_each(|row| raw.write(*row)));
        pages.clear();
        let entries = harvest.time(|| ring.harvest(|slot, offset| pages.push((slot, offset))));
        reset.time(|| raw.reset_rings(entries));
        pages.sort_unstable();
        pages.dedup();
        assert!(look == 0 || pages.len() as u64 == count, "{} of {count}", pages.len());
    }
    (harvest, reset, guest)
}
