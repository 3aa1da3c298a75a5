//! A pause that copies all dirty pages, against a pause that write-protects them and leaves the
//! copy to a thread that runs beside the writers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kemari_hypervisor::memory::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::PAGE;
use crate::common::memory;
use crate::dirty_area::{DirtyArea, Protect};
use crate::rounds::{Times, head, in_turn, time};

pub(crate) const MEMORY: usize = 256 << 20;
/// Address of the first dirty page: the guest's code and page tables are below.
pub(crate) const FIRST: usize = 4 << 20;
pub(crate) const COUNTS: [usize; 4] = [16, 128, 1024, 8192];
pub(crate) const HOWS: [Protect; 2] = [Protect::Each, Protect::Span];

pub(crate) fn stride(count: usize) -> usize {
    (MEMORY - FIRST) / count / PAGE * PAGE
}

/// Numbers of equally spaced pages.
pub(crate) fn dirty(count: usize) -> Vec<usize> {
    (0..count).map(|i| (FIRST + i * stride(count)) / PAGE).collect()
}

pub(crate) fn rounds(count: usize) -> usize {
    if count > 1000 { 41 } else { 201 }
}

/// Touches all of guest memory; returns its address in this process.
pub(crate) fn touch(memory: &GuestMemory) -> usize {
    let region = memory.iter().next().unwrap();
    assert_eq!(region.len() as usize, MEMORY);
    let base = region.get_mmap().as_ptr();
    // SAFETY: one byte of each page of the mapping, which no other code uses yet.
    (0..MEMORY / PAGE).for_each(|page| unsafe { base.add(page * PAGE).write_volatile(1) });
    base as usize
}

/// Registers the memory; `None`, with a message, if the kernel does not support it.
pub(crate) fn area(base: usize, dirty: &[usize]) -> Option<DirtyArea> {
    match DirtyArea::new(base, MEMORY, dirty) {
        Ok(area) => Some(area),
        Err(error) => {
            println!("NOT MEASURED: copy-on-write of private anonymous memory: {error}");
            None
        }
    }
}

fn word(page: usize) -> &'static AtomicU64 {
    // SAFETY: the first word of a mapped page of memory that outlives its users, only used as an
    // atomic while others write to it.
    unsafe { AtomicU64::from_ptr(page as *mut u64) }
}

pub(crate) fn staged_is(area: &DirtyArea, value: u64) {
    for page in area.staged.as_chunks::<PAGE>().0 {
        assert_eq!(
            u64::from_ne_bytes(page[..8].try_into().unwrap()),
            value,
            "torn: not the pause's"
        );
    }
}

#[test]
#[ignore = "a measurement"]
fn cow_thread() {
    let memory = memory(MEMORY as u64);
    let base = touch(&memory);
    head(&[
        "pages",
        "copy in the pause us",
        "protect each: pause",
        "all",
        "protect a span: pause",
        "all",
        "pause, each to copy",
        "a write ns",
        "a write that waited us p50 / p99",
        "waited",
    ]);
    for count in COUNTS {
        let pages = dirty(count);
        let Some(area) = area(base, &pages) else { return };
        let area = std::cell::RefCell::new(area);
        let set = |value| {
            pages.iter().for_each(|p| word(base + p * PAGE).store(value, Ordering::Relaxed))
        };
        let mut value = 0;
        let mut next = || {
            value += 1;
            set(value);
            value
        };
        let all = HOWS.map(|_| std::cell::RefCell::new(Times::default()));
        let next = std::cell::RefCell::new(&mut next);
        let protect = |i: usize| {
            let (value, mut area) = ((next.borrow_mut())(), area.borrow_mut());
            let start = Instant::now();
            let pause = time(|| area.protect(HOWS[i]));
            assert!(area.copy_behind(HOWS[i]).is_empty());
            all[i].borrow_mut().0.push(start.elapsed());
            staged_is(&area, value);
            pause
        };
        let stage = || {
            let (value, mut area) = ((next.borrow_mut())(), area.borrow_mut());
            let pause = time(|| area.stage());
            staged_is(&area, value);
            pause
        };
        let times = in_turn(
            rounds(count),
            &mut [
                ("copy", Box::new(stage)),
                ("each", Box::new(|| protect(0))),
                ("span", Box::new(|| protect(1))),
            ],
        );
        let us = |t: &Times| format!("{:.1}", t.median() / 1e3);
        let (free, waited, part) = writes(&mut area.borrow_mut(), base, &pages);
        println!(
            "| {count} | {} | {} | {} | {} | {} | {:.1} | {:.0} | {waited} | {:.0} % |",
            us(&times[0]),
            us(&times[1]),
            us(&all[0].borrow()),
            us(&times[2]),
            us(&all[1].borrow()),
            times[1].median() / times[0].median(),
            free.median(),
            part * 100.0,
        );
    }
}

/// Runs a thread that writes to all the dirty pages, in random order, as soon as the pause is over.
/// Returns the times of its writes to pages that were writable again, the times of its writes that
/// waited, and the share of the latter.
fn writes(area: &mut DirtyArea, base: usize, pages: &[usize]) -> (Times, Times, f64) {
    let (mut free, mut waited) = (Times::default(), Times::default());
    let mut order: Vec<usize> = (0..pages.len()).collect();
    fastrand::Rng::with_seed(9).shuffle(&mut order);
    for round in 1..=rounds(pages.len()) as u64 {
        pages.iter().for_each(|p| word(base + p * PAGE).store(round, Ordering::Relaxed));
        area.protect(Protect::Each);
        let started = std::sync::Barrier::new(2);
        let (taken, places) = std::thread::scope(|scope| {
            let (order, begin) = (&order, &started);
            let writer = scope.spawn(move || {
                begin.wait();
                let write =
                    |&i: &usize| time(|| word(base + pages[i] * PAGE).store(0, Ordering::Relaxed));
                order.iter().map(write).collect::<Vec<Duration>>()
            });
            started.wait();
            let places = area.copy_behind(Protect::Each);
            (writer.join().unwrap(), places)
        });
        staged_is(area, round);
        let mut held = vec![false; pages.len()];
        places.iter().for_each(|&place| held[place] = true);
        for (&place, time) in order.iter().zip(taken) {
            if held[place] { waited.0.push(time) } else { free.0.push(time) }
        }
    }
    let part = waited.0.len() as f64 / (waited.0.len() + free.0.len()) as f64;
    if waited.0.is_empty() {
        waited.0.push(Duration::ZERO);
    }
    (free, waited, part)
}
