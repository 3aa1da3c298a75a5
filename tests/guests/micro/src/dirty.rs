//! Dirties memory in the background at a given rate. The contents of each page show damage.
//!
//! A page holds its index, its generation and a pattern of both (`kemari_workload::page`). A
//! separate array holds the generation that the page must have: a page that was rolled back alone,
//! or is torn, differs from it (P4, P8).

use crate::faults;
use crate::memory::Region;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use kemari_workload::page::{self, Page};

const DEFAULT_REGION: u64 = 4096;
/// Maximum backlog of work, in nanoseconds at the current rate. A larger backlog, after a pause of
/// the machine, is dropped.
const MAX_DEBT_NS: u64 = 100_000_000;
/// The background work rewrites only the ends of pages whose index has this bit.
const HALF: u64 = 2;
const SECOND_NS: u64 = 1_000_000_000;

static PAGES: AtomicU64 = AtomicU64::new(0);
static GENERATIONS: AtomicU64 = AtomicU64::new(0);
static CAPACITY: AtomicU64 = AtomicU64::new(0);
static WORKERS: AtomicUsize = AtomicUsize::new(1);

static RATE: AtomicU32 = AtomicU32::new(0);
static REGION_PAGES: AtomicU32 = AtomicU32::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);

static PAUSE: AtomicBool = AtomicBool::new(false);
static PARKED: AtomicUsize = AtomicUsize::new(0);

/// Sets the memory to use and the number of workers. Call it before the first worker starts.
pub fn set_up(memory: Region, workers: usize) {
    let length = memory.end.saturating_sub(memory.start);
    let capacity = (length / (size_of::<Page>() + size_of::<u64>()) as u64)
        .saturating_sub(1)
        .min(u64::from(u32::MAX));
    let generations = memory.start;
    let pages = (generations + capacity * size_of::<u64>() as u64).next_multiple_of(4096);
    for index in 0..capacity {
        // SAFETY: inside `memory`, which is spare RAM, mapped one to one, and not used by other
        // code yet.
        unsafe { (generations as *mut u64).add(index as usize).write(0) };
    }
    GENERATIONS.store(generations, Ordering::SeqCst);
    PAGES.store(pages, Ordering::SeqCst);
    CAPACITY.store(capacity, Ordering::SeqCst);
    WORKERS.store(workers, Ordering::SeqCst);
    REGION_PAGES.store(capacity.min(DEFAULT_REGION) as u32, Ordering::SeqCst);
}

/// Sets the rate, and the region unless it is 0. Returns the number of pages in the region.
pub fn command(pages_per_second: u32, region_pages: u32) -> u32 {
    if region_pages != 0 {
        let capacity = CAPACITY.load(Ordering::SeqCst) as u32;
        REGION_PAGES.store(region_pages.min(capacity), Ordering::SeqCst);
    }
    RATE.store(pages_per_second, Ordering::SeqCst);
    REGION_PAGES.load(Ordering::SeqCst)
}

/// Number of pages dirtied so far, with repetitions.
pub fn written() -> u64 {
    WRITTEN.load(Ordering::SeqCst)
}

/// A page and its entry in the array of generations.
fn slot(index: u64) -> (*mut Page, *mut u64) {
    assert!(index < CAPACITY.load(Ordering::Relaxed));
    let page = PAGES.load(Ordering::Relaxed) as *mut Page;
    let generation = GENERATIONS.load(Ordering::Relaxed) as *mut u64;
    (page.wrapping_add(index as usize), generation.wrapping_add(index as usize))
}

/// Checks page `index`. Returns whether the page holds its last contents, and counts a fault if
/// not.
///
/// # Safety
/// No other CPU may work on the page.
unsafe fn check(index: u64) -> bool {
    let (page, generation) = slot(index);
    // SAFETY: both are inside the memory of `set_up`, and only ours as the caller guarantees.
    let (page, generation) = unsafe { (&*page, *generation) };
    if generation == 0 || page::check(page, index, generation) {
        return true;
    }
    faults::bad_page(index, generation, page::identify(page));
    false
}

/// Writes the next generation to page `index`: to the whole page, or to its ends. A bad page is
/// counted once, because it is rewritten as a whole.
///
/// # Safety
/// As for [`check`].
unsafe fn rewrite(index: u64, whole: bool) {
    // SAFETY: the caller guarantees it.
    let good = unsafe { check(index) };
    let (page, generation) = slot(index);
    // SAFETY: as in `check`.
    unsafe {
        let next = if whole || !good { page::next_whole } else { page::next_ends };
        *generation = next(*generation);
        page::fill(&mut *page, index, *generation);
    }
    WRITTEN.fetch_add(1, Ordering::Relaxed);
}

/// The share of the work of one CPU: all pages whose index modulo the number of workers equals the
/// worker's number.
pub struct Worker {
    number: u64,
    workers: u64,
    next: u64,
    rate: u64,
    since: u64,
    done: u64,
}

impl Worker {
    /// Worker `number`, counted from 0.
    pub fn new(number: usize) -> Self {
        Self {
            number: number as u64,
            workers: WORKERS.load(Ordering::SeqCst) as u64,
            next: number as u64,
            rate: 0,
            since: 0,
            done: 0,
        }
    }

    /// Dirties the pages that are due at `now`, at most `limit`, and stops when asked to park.
    /// Returns whether it dirtied any.
    pub fn step(&mut self, now: u64, limit: u32) -> bool {
        let due = self.due(now).min(u64::from(limit));
        let mut any = false;
        for _ in 0..due {
            if PAUSE.load(Ordering::SeqCst) {
                break;
            }
            if self.next >= u64::from(REGION_PAGES.load(Ordering::Relaxed)) {
                self.next = self.number;
                if self.next >= u64::from(REGION_PAGES.load(Ordering::Relaxed)) {
                    break;
                }
            }
            // SAFETY: the index is ours by the rule of the type, and no verification runs before we
            // have parked.
            unsafe { rewrite(self.next, self.next & HALF == 0) };
            self.next += self.workers;
            self.done += 1;
            any = true;
        }
        any
    }

    fn due(&mut self, now: u64) -> u64 {
        let rate = u64::from(RATE.load(Ordering::Relaxed));
        if rate != self.rate {
            (self.rate, self.since, self.done) = (rate, now, 0);
        }
        let elapsed = u128::from(now - self.since);
        let per_round = u128::from(SECOND_NS) * u128::from(self.workers);
        let total = (elapsed * u128::from(rate) / per_round) as u64;
        let due = total - self.done.min(total);
        let most = rate * MAX_DEBT_NS / SECOND_NS + 1;
        if due > most {
            self.done = total - most;
        }
        due.min(most)
    }
}

/// Blocks while the first CPU needs the pages alone.
pub fn park_if_asked() {
    if !PAUSE.load(Ordering::SeqCst) {
        return;
    }
    PARKED.fetch_add(1, Ordering::SeqCst);
    while PAUSE.load(Ordering::SeqCst) {
        core::hint::spin_loop();
    }
    PARKED.fetch_sub(1, Ordering::SeqCst);
}

/// Checks all pages while `others` workers are parked, and returns the number of bad pages. Only
/// for the first CPU.
pub fn verify(others: usize) -> u64 {
    let capacity = CAPACITY.load(Ordering::SeqCst);
    // SAFETY: all workers are parked, or are this CPU.
    let bad = || (0..capacity).filter(|&index| !unsafe { check(index) }).count();
    alone(others, bad) as u64
}

/// Rewrites the first `pages` pages, as a whole or at their ends, while `others` workers are
/// parked. Returns the number of rewritten pages. Only for the first CPU.
pub fn touch(pages: u32, whole: bool, others: usize) -> u64 {
    let count = u64::from(pages).min(CAPACITY.load(Ordering::SeqCst));
    // SAFETY: all workers are parked, or are this CPU.
    alone(others, || (0..count).for_each(|index| unsafe { rewrite(index, whole) }));
    count
}

/// Runs `work` while `others` workers are parked.
fn alone<R>(others: usize, work: impl FnOnce() -> R) -> R {
    // Wait first until the workers of the last call have left, so that PARKED counts only those of
    // this call.
    while PARKED.load(Ordering::SeqCst) != 0 {
        core::hint::spin_loop();
    }
    PAUSE.store(true, Ordering::SeqCst);
    while PARKED.load(Ordering::SeqCst) != others {
        core::hint::spin_loop();
    }
    let result = work();
    PAUSE.store(false, Ordering::SeqCst);
    result
}
