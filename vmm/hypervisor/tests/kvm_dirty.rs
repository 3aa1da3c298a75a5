//! P8 on real KVM: dirty tracking finds every page that the guest or this process writes, and no
//! other.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::mpsc::Receiver;

use common::{CODE, DONE, Event, enter, handler, memory, open, run, vm};
use kemari_hypervisor::kvm::{VcpuSet, Vm, VmOptions};
use kemari_hypervisor::memory::DirtyTracker;
use kvm_bindings::kvm_regs;
use vm_memory::{Bytes, GuestAddress};

const PAGE: u64 = 4096;

/// `1: mov [rdi], rcx; add rdi, rdx; dec rcx; jnz 1b; mov [rbx], rcx; jmp $`
const WRITE_PAGES: &[u8] = &[
    0x48, 0x89, 0x0f, 0x48, 0x01, 0xd7, 0x48, 0xff, 0xc9, 0x75, 0xf5, 0x48, 0x89, 0x0b, 0xeb, 0xfe,
];

/// `1: mov rdi, rsi; mov rcx, r8`
/// `2: inc rax; mov [rdi], rax; add rdi, rdx; dec rcx; jnz 2b; jmp 1b`
const WRITE_FOREVER: &[u8] = &[
    0x48, 0x89, 0xf7, 0x4c, 0x89, 0xc1, 0x48, 0xff, 0xc0, 0x48, 0x89, 0x07, 0x48, 0x01, 0xd7, 0x48,
    0xff, 0xc9, 0x75, 0xf2, 0xeb, 0xea,
];

/// Runs the guest once, so that its code is mapped: KVM may map a page writable when the guest
/// first reads it, and report it as dirty.
fn warm_up(set: &VcpuSet, events: &Receiver<Event>, tracker: &mut DirtyTracker) {
    set.with_vcpu(0, |fd| enter(fd, write_pages(0x70_0000, 1, PAGE))).unwrap();
    assert_eq!(run(set, events), Event::Done(0));
    let page_numbers = tracker.collect().unwrap();
    assert!(page_numbers.contains(&0x700), "{page_numbers:?}");
}

fn write_pages(start: u64, count: u64, stride: u64) -> kvm_regs {
    kvm_regs { rdi: start, rcx: count, rdx: stride, rbx: DONE, ..Default::default() }
}

#[test]
fn p8_exactly_the_written_pages_are_found() {
    let kvm = open();
    let vm = vm(&kvm, memory(64 << 20), WRITE_PAGES, 1);
    let (handler, events) = handler();
    let set = VcpuSet::spawn(vm.create_vcpus().unwrap(), handler).unwrap();
    vm.start_dirty_log().unwrap();
    let mut tracker = vm.dirty_tracker();
    warm_up(&set, &events, &mut tracker);
    assert_eq!(tracker.collect().unwrap(), &[] as &[u64], "clean after a look");

    for (start, count, stride) in
        [(0x10_0000, 1, 1), (0x20_0000, 700, 1), (0x80_0000, 60, 67), (0x20_0000, 700, 1)]
    {
        set.with_vcpu(0, |fd| enter(fd, write_pages(start, count, stride * PAGE))).unwrap();
        assert_eq!(run(&set, &events), Event::Done(0));
        let expected: Vec<u64> = (0..count).map(|i| start / PAGE + i * stride).collect();
        assert_eq!(tracker.collect().unwrap(), expected);
        assert_eq!(tracker.collect().unwrap(), &[] as &[u64], "cleared by the look");
    }
}

#[test]
fn p8_writes_of_this_process_are_found_and_merged_with_the_guests() {
    let kvm = open();
    let vm = vm(&kvm, memory(64 << 20), WRITE_PAGES, 1);
    let (handler, events) = handler();
    let set = VcpuSet::spawn(vm.create_vcpus().unwrap(), handler).unwrap();
    vm.start_dirty_log().unwrap();
    let mut tracker = vm.dirty_tracker();
    let boot = tracker.collect().unwrap().to_vec();
    assert!(boot.contains(&(CODE / PAGE)), "what the loader wrote is dirty: {boot:?}");

    warm_up(&set, &events, &mut tracker);

    // The guest and this process write page 0x300, and each writes other pages alone. A write
    // across a page border dirties both pages.
    let border = GuestAddress(0x30_0000 - 4);
    vm.memory().write_obj(1u64, border).unwrap();
    vm.memory().write_obj(1u8, GuestAddress((64 << 20) - 1)).unwrap();
    set.with_vcpu(0, |fd| enter(fd, write_pages(0x30_0000, 2, PAGE))).unwrap();
    assert_eq!(run(&set, &events), Event::Done(0));
    assert_eq!(tracker.collect().unwrap(), [0x2ff, 0x300, 0x301, (64 << 8) - 1]);
    assert_eq!(tracker.collect().unwrap(), &[] as &[u64]);
    vm.memory().write_obj(2u64, border).unwrap();
    assert_eq!(tracker.collect().unwrap(), [0x2ff, 0x300], "found again when written again");
}

/// If pages are far apart, the log is cleared in several spans: KVM watches each page again.
#[test]
fn p8_pages_far_apart_are_found_again_when_written_again() {
    let kvm = open();
    let vm = vm(&kvm, memory(1 << 30), WRITE_PAGES, 1);
    let (handler, events) = handler();
    let set = VcpuSet::spawn(vm.create_vcpus().unwrap(), handler).unwrap();
    vm.start_dirty_log().unwrap();
    let mut tracker = vm.dirty_tracker();
    warm_up(&set, &events, &mut tracker);
    let last = (1 << 30) / PAGE - 1;
    for _ in 0..3 {
        let stride = 200 << 20;
        set.with_vcpu(0, |fd| enter(fd, write_pages(0x80_0000, 5, stride))).unwrap();
        assert_eq!(run(&set, &events), Event::Done(0));
        set.with_vcpu(0, |fd| enter(fd, write_pages(last * PAGE, 1, PAGE))).unwrap();
        assert_eq!(run(&set, &events), Event::Done(0));
        let mut expected: Vec<u64> = (0..5).map(|i| (0x80_0000 + i * stride) / PAGE).collect();
        expected.push(last);
        assert_eq!(tracker.collect().unwrap(), expected);
        assert_eq!(tracker.collect().unwrap(), &[] as &[u64], "cleared by the look");
    }
}

#[test]
fn p8_a_look_that_fails_loses_nothing() {
    let kvm = open();
    let vm = Vm::new(&kvm, memory(16 << 20), VmOptions { cpus: 1, pit: true }).unwrap();
    let mut tracker = vm.dirty_tracker();
    vm.memory().write_obj(1u8, GuestAddress(9 * PAGE)).unwrap();
    tracker.mark(&[3]);
    let mut page_numbers = vec![77];
    assert!(tracker.collect_epoch(&mut page_numbers).is_err(), "KVM has no log yet");
    assert_eq!(page_numbers, [77], "nothing was appended");
    vm.start_dirty_log().unwrap();
    tracker.collect_epoch(&mut page_numbers).unwrap();
    assert_eq!(page_numbers, [77, 3, 9]);
}

#[test]
fn pages_marked_by_hand_come_back_once() {
    let kvm = open();
    // 2 MiB and 3 pages use only a part of the bitmap's last word.
    let vm = vm(&kvm, memory((2 << 20) + 3 * PAGE), WRITE_PAGES, 1);
    vm.start_dirty_log().unwrap();
    let mut tracker = vm.dirty_tracker();
    tracker.mark_all();
    let all: Vec<u64> = (0..515).collect();
    assert_eq!(tracker.collect().unwrap(), all);
    assert_eq!(tracker.collect().unwrap(), &[] as &[u64]);
    tracker.mark(&[514, 7]);
    vm.memory().write_obj(1u8, GuestAddress(8 * PAGE)).unwrap();
    assert_eq!(tracker.collect().unwrap(), [7, 8, 514], "a failed transfer is merged back");
    assert_eq!(tracker.collect().unwrap(), &[] as &[u64]);
}

#[test]
fn memory_above_four_gib_has_its_own_page_numbers() {
    let kvm = open();
    let vm = vm(&kvm, memory((3 << 30) + (8 << 20)), WRITE_PAGES, 1);
    let (handler, events) = handler();
    let set = VcpuSet::spawn(vm.create_vcpus().unwrap(), handler).unwrap();
    vm.start_dirty_log().unwrap();
    let mut tracker = vm.dirty_tracker();
    warm_up(&set, &events, &mut tracker);
    set.with_vcpu(0, |fd| enter(fd, write_pages((4 << 30) + 5 * PAGE, 2, PAGE))).unwrap();
    assert_eq!(run(&set, &events), Event::Done(0));
    vm.memory().write_obj(1u8, GuestAddress(9 * PAGE)).unwrap();
    assert_eq!(tracker.collect().unwrap(), [9, 0x10_0005, 0x10_0006]);
}

/// Pre-copy: a copy receives the collected pages while the guest writes. After a last look at the
/// paused guest it is exact.
#[test]
fn p8_a_live_copy_converges() {
    const START: u64 = 0x40_0000;
    const PAGES: u64 = 1000;
    let kvm = open();
    let vm = vm(&kvm, memory(32 << 20), WRITE_FOREVER, 1);
    let (handler, _events) = handler();
    let set = VcpuSet::spawn(vm.create_vcpus().unwrap(), handler).unwrap();
    let regs = kvm_regs { rsi: START, r8: PAGES, rdx: PAGE, ..Default::default() };
    set.with_vcpu(0, |fd| enter(fd, regs)).unwrap();
    set.resume();

    // Start the log while the guest runs.
    vm.start_dirty_log().unwrap();
    let mut tracker = vm.dirty_tracker();
    tracker.mark_all();
    let mut copy = vec![0u8; 32 << 20];
    let mut copy_pages = |page_numbers: &[u64]| {
        for &number in page_numbers {
            let at = (number * PAGE) as usize;
            vm.memory()
                .read_slice(&mut copy[at..at + PAGE as usize], GuestAddress(number * PAGE))
                .unwrap();
        }
    };
    copy_pages(tracker.collect().unwrap());
    let mut live = 0;
    // Continue until twenty looks have found writes of the guest.
    while live < 20 {
        let page_numbers = tracker.collect().unwrap();
        live += u32::from(!page_numbers.is_empty());
        copy_pages(page_numbers);
    }
    set.pause();
    copy_pages(tracker.collect().unwrap());
    let mut real = vec![0u8; 32 << 20];
    vm.memory().read_slice(&mut real, GuestAddress(0)).unwrap();
    assert!(copy == real, "the copy differs from guest memory");
}

/// KVM does not watch pages that are written all the time, and each look reports them nevertheless.
/// A copy that receives the pages of each look at the paused guest is exact after each look.
#[test]
fn p8_pages_that_are_not_watched_are_told() {
    const PAGES: u64 = 300;
    const EPOCHS: u64 = 40;
    let kvm = open();
    let vm = vm(&kvm, memory(16 << 20), WRITE_FOREVER, 1);
    let (handler, _events) = handler();
    let set = VcpuSet::spawn(vm.create_vcpus().unwrap(), handler).unwrap();
    vm.start_dirty_log().unwrap();
    let mut tracker = vm.dirty_tracker();
    let (mut copy, mut real) = (vec![0u8; 16 << 20], vec![0u8; 16 << 20]);
    let mut page_numbers = Vec::new();
    // The guest moves on to other pages, which overlap with the former ones, and back.
    for start in [0x40_0000, 0x48_0000, 0x40_0000] {
        let regs = kvm_regs { rsi: start, r8: PAGES, rdx: PAGE, ..Default::default() };
        set.with_vcpu(0, |fd| enter(fd, regs)).unwrap();
        let last = GuestAddress(start + (PAGES - 1) * PAGE);
        for _ in 0..EPOCHS {
            // Wait for two changes of the last page, so that the guest has written all pages.
            for _ in 0..2 {
                let before: u64 = vm.memory().read_obj(last).unwrap();
                set.resume();
                while vm.memory().read_obj::<u64>(last).unwrap() == before {}
                set.pause();
            }
            page_numbers.clear();
            tracker.collect_epoch(&mut page_numbers).unwrap();
            for number in &page_numbers {
                let at = (number * PAGE) as usize;
                let page = &mut copy[at..at + PAGE as usize];
                vm.memory().read_slice(page, GuestAddress(number * PAGE)).unwrap();
            }
            vm.memory().read_slice(&mut real, GuestAddress(0)).unwrap();
            assert!(copy == real, "the copy differs from guest memory");
        }
        let expected: Vec<u64> = (0..PAGES).map(|page| start / PAGE + page).collect();
        assert_eq!(page_numbers, expected, "those written of late alone");
    }
    // One call of `collect` makes KVM watch all pages again.
    assert_eq!(tracker.collect().unwrap().len() as u64, PAGES);
    assert_eq!(tracker.collect().unwrap(), &[] as &[u64]);
}

/// Measures the cost of a look; judges no time.
#[test]
fn cost_of_a_look() {
    let kvm = open();
    for mib in [256u64, 2048] {
        let vm = vm(&kvm, memory(mib << 20), WRITE_PAGES, 1);
        let (handler, events) = handler();
        let set = VcpuSet::spawn(vm.create_vcpus().unwrap(), handler).unwrap();
        vm.start_dirty_log().unwrap();
        let mut tracker = vm.dirty_tracker();
        warm_up(&set, &events, &mut tracker);
        for count in [0u64, 1, 100, 10_000] {
            if count > 0 {
                set.with_vcpu(0, |fd| enter(fd, write_pages(1 << 20, count, PAGE))).unwrap();
                assert_eq!(run(&set, &events), Event::Done(0));
            }
            let start = std::time::Instant::now();
            let found = tracker.collect().unwrap().len();
            println!("{mib} MiB, {found} dirty pages: {:?}", start.elapsed());
            assert_eq!(found as u64, count);
        }
    }
}
