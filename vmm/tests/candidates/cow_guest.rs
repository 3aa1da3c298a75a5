//! Copy-on-write by userfaultfd under a KVM guest, and its cost for the guest. Protection unmaps
//! guest memory page by page, and each access then causes an exit.

use std::time::Instant;

use kemari_hypervisor::kvm::VcpuSet;
use kvm_bindings::kvm_regs;

use crate::common::{DONE, Event, enter, handler, memory, open, run, vm};
use crate::cow::{COUNTS, FIRST, HOWS, MEMORY, area, dirty, rounds, staged_is, stride, touch};
use crate::rounds::{Times, head, time};

/// `1: mov [rdi], rax; add rdi, rdx; dec rcx; jnz 1b; mov [rbx], rcx; jmp $`
const WRITE_PAGES: &[u8] = &[
    0x48, 0x89, 0x07, 0x48, 0x01, 0xd7, 0x48, 0xff, 0xc9, 0x75, 0xf5, 0x48, 0x89, 0x0b, 0xeb, 0xfe,
];

/// A guest that writes to the same pages in every epoch. KVM logs its dirty pages as for the
/// engine.
#[test]
#[ignore = "a measurement"]
fn cow_guest() {
    let memory = memory(MEMORY as u64);
    let base = touch(&memory);
    let kvm = open();
    let vm = vm(&kvm, memory, WRITE_PAGES, 1);
    let (handler, events) = handler();
    let set = VcpuSet::spawn(vm.create_vcpus().unwrap(), handler).unwrap();
    vm.start_dirty_log().unwrap();
    let mut tracker = vm.dirty_tracker();
    let mut look = || tracker.collect().unwrap().to_vec();
    look();
    head(&[
        "pages",
        "way",
        "pause us p50 / p99",
        "until all is copied",
        "the guest writes them again",
        "guest to copy's",
        "pages it waited for",
    ]);
    for count in COUNTS {
        let pages = dirty(count);
        let Some(mut area) = area(base, &pages) else { return };
        let frames: Vec<u64> = pages.iter().map(|page| *page as u64).collect();
        let mut value = 0;
        let regs = |value| kvm_regs {
            rax: value,
            rcx: count as u64,
            rdi: FIRST as u64,
            rdx: stride(count) as u64,
            rbx: DONE,
            ..Default::default()
        };
        let write = |value| {
            set.with_vcpu(0, |fd| enter(fd, regs(value))).unwrap();
            time(|| assert_eq!(run(&set, &events), Event::Done(0)))
        };
        let mut results: [[Times; 3]; 3] = Default::default();
        let mut waits = [0, 0, 0];
        write(0);
        look();
        for round in 0..rounds(count) * 3 {
            let at = round % 3;
            value += 1;
            write(value);
            assert_eq!(look(), frames);
            let how = at.checked_sub(1).map(|i| HOWS[i]);
            let start = Instant::now();
            let pause = time(|| match how {
                None => area.stage(),
                Some(how) => area.protect(how),
            });
            let (mut all, mut waited) = (pause, 0);
            let guest = std::thread::scope(|scope| {
                let (area, all, waited) = (&mut area, &mut all, &mut waited);
                scope.spawn(move || {
                    if let Some(how) = how {
                        *waited = area.copy_behind(how).len();
                        *all = start.elapsed();
                    }
                });
                write(value + 1)
            });
            staged_is(&area, value);
            value += 1;
            waits[at] += waited;
            for (times, time) in results[at].iter_mut().zip([pause, all, guest]) {
                times.0.push(time);
            }
            // Pages written during the copy do not count in this round.
            assert_eq!(look(), frames);
        }
        for (way, (times, waits)) in
            ["copy", "protect each", "protect a span"].iter().zip(results.iter().zip(waits))
        {
            let [pause, all, guest] = times;
            println!(
                "| {count} | {way} | {pause} | {all} | {guest} | {:.2} | {:.0} % |",
                guest.median() / results[0][2].median(),
                100.0 * waits as f64 / (rounds(count) * count) as f64,
            );
        }
    }
}
