//! A bitmap of the pages of a memory region that this process has written (P8). A summary makes
//! taking the pages cheap: 16 MiB without a written page cost one load.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Bytes of a page: the unit of KVM's dirty log.
const PAGE_SIZE: usize = 4096;
const BITS: usize = u64::BITS as usize;

/// One bit per 4 KiB page, and one summary bit per 64 pages, so that taking skips the bits of
/// unwritten pages.
///
/// P8: no mark is lost between a writer and a taker that run at the same time. A writer stores its
/// bytes, then sets the page's bit, then sets the summary bit if it is clear. A taker clears the
/// summary bit, then takes the page's bit, then reads the page. If the taker reads the page's bit
/// before it is set, it has already cleared the summary bit, and the writer sets that bit again for
/// the next take. In any other order (the writer sets the summary bit first, or the taker clears it
/// last) a page's bit could stay set under a clear summary bit, and no take would find it.
#[derive(Debug, Default)]
pub struct PageBitmap {
    words: Box<[AtomicU64]>,
    /// One bit per word of `words` that may be nonzero.
    summary: Box<[AtomicU64]>,
    pages: usize,
}

fn zeros(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// The bits of word `index` for the pages `first..=last`.
fn mask(index: usize, first: usize, last: usize) -> u64 {
    let from = first.saturating_sub(index * BITS);
    let to = (last - index * BITS).min(BITS - 1);
    (u64::MAX << from) & (u64::MAX >> (BITS - 1 - to))
}

impl PageBitmap {
    /// A bitmap of `len` bytes of memory, rounded up to whole pages, all clean.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let pages = len.div_ceil(PAGE_SIZE);
        let words = pages.div_ceil(BITS);
        Self { words: zeros(words), summary: zeros(words.div_ceil(BITS)), pages }
    }

    /// Takes the marked pages: calls `found` with each group of 64 pages that has marks, in
    /// ascending order, and the bits of its marked pages. The pages are then clean, so read a
    /// page's contents only after `found` has reported it. This call or the next one reports marks
    /// that are made during the call.
    pub fn take(&self, found: impl FnMut(usize, u64)) {
        self.take_in_steps(found, || ());
    }

    /// As [`take`](Self::take). Calls `between` between any two accesses to shared data.
    fn take_in_steps(&self, mut found: impl FnMut(usize, u64), between: impl Fn()) {
        for (above, summary) in self.summary.iter().enumerate() {
            // The load avoids a more expensive swap if nothing was written. The next take finds a
            // later mark. This load sees an earlier mark, since its writer has set the summary bit
            // or has seen it set.
            if summary.load(Ordering::SeqCst) == 0 {
                continue;
            }
            between();
            let mut rest = summary.swap(0, Ordering::SeqCst);
            while rest != 0 {
                between();
                let index = above * BITS + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                let bits = self.words[index].swap(0, Ordering::SeqCst);
                if bits != 0 {
                    found(index, bits);
                }
            }
        }
    }

    /// Sets bits of one word. Calls `between` between any two accesses to shared data.
    fn mark_in_steps(&self, index: usize, bits: u64, between: impl Fn()) {
        // Always write, even if the bit is set: the write orders the writer's earlier stores to the
        // page before a taker's read of it.
        self.words[index].fetch_or(bits, Ordering::SeqCst);
        let above = 1 << (index % BITS);
        let summary = &self.summary[index / BITS];
        between();
        // All accesses are sequentially consistent. If this load sees the summary bit set, a taker
        // clears that bit later, and only then takes the word, with the bits set above.
        if summary.load(Ordering::SeqCst) & above == 0 {
            between();
            summary.fetch_or(above, Ordering::SeqCst);
        }
    }
}

impl<'a> WithBitmapSlice<'a> for PageBitmap {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for PageBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(reach) = len.checked_sub(1) else {
            return;
        };
        let first = offset / PAGE_SIZE;
        if first >= self.pages {
            // Ignore it, as vm-memory's own bitmap does: there is no such page, so nothing was
            // written.
            return;
        }
        let last = (offset.saturating_add(reach) / PAGE_SIZE).min(self.pages - 1);
        for index in first / BITS..=last / BITS {
            self.mark_in_steps(index, mask(index, first, last), || ());
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE;
        let word = self.words.get(page / BITS);
        word.is_some_and(|word| word.load(Ordering::SeqCst) >> (page % BITS) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for PageBitmap {
    fn with_len(len: usize) -> Self {
        Self::new(len)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    fn pages(index: usize, bits: u64) -> impl Iterator<Item = usize> {
        (0..BITS).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| index * BITS + bit)
    }

    fn taken(bitmap: &PageBitmap) -> Vec<usize> {
        let mut found = Vec::new();
        bitmap.take(|index, bits| found.extend(pages(index, bits)));
        found
    }

    #[test]
    fn p8_every_page_that_a_range_touches_is_told_once() {
        let pages = 3 * BITS * BITS + 5;
        let bitmap = PageBitmap::new(pages * PAGE_SIZE - 1);
        let ranges = [
            (0, 1),
            (PAGE_SIZE - 1, 2),
            (63 * PAGE_SIZE, 2 * PAGE_SIZE),
            (64 * PAGE_SIZE, 64 * PAGE_SIZE),
            (100 * PAGE_SIZE + 7, 500 * PAGE_SIZE),
            (4095 * PAGE_SIZE + 1, PAGE_SIZE),
            ((pages - 1) * PAGE_SIZE, 1),
            ((pages - 2) * PAGE_SIZE, usize::MAX),
            (0, pages * PAGE_SIZE),
        ];
        for (offset, len) in ranges {
            bitmap.mark_dirty(offset, len);
            let last = (offset.saturating_add(len - 1) / PAGE_SIZE).min(pages - 1);
            let expected: Vec<usize> = (offset / PAGE_SIZE..=last).collect();
            assert!(expected.iter().all(|page| bitmap.dirty_at(page * PAGE_SIZE)));
            assert_eq!(taken(&bitmap), expected, "{len} bytes at {offset:#x}");
            assert!(expected.iter().all(|page| !bitmap.dirty_at(page * PAGE_SIZE)));
            assert!(taken(&bitmap).is_empty(), "told once");
        }
    }

    #[test]
    fn what_does_not_touch_a_page_marks_none() {
        let bitmap = PageBitmap::new(3 * PAGE_SIZE);
        bitmap.mark_dirty(0, 0);
        bitmap.mark_dirty(3 * PAGE_SIZE, 1);
        bitmap.mark_dirty(usize::MAX, usize::MAX);
        assert!(taken(&bitmap).is_empty());
        assert!(!bitmap.dirty_at(3 * PAGE_SIZE));
        let empty = PageBitmap::default();
        empty.mark_dirty(0, 1);
        assert!(taken(&empty).is_empty());
    }

    #[test]
    fn a_slice_marks_from_its_own_start() {
        let bitmap = PageBitmap::new(10 * PAGE_SIZE);
        let slice = bitmap.slice_at(4 * PAGE_SIZE);
        slice.slice_at(PAGE_SIZE).mark_dirty(0, 1);
        assert!(slice.dirty_at(PAGE_SIZE));
        assert_eq!(taken(&bitmap), [5]);
    }

    /// P8: a whole take between any two steps of one mark, and a whole mark between any two steps
    /// of one take, with the word and its summary bit set before or not.
    #[test]
    fn p8_a_mark_is_reported_whatever_it_meets() {
        const PAGE: usize = 65 * BITS + 3;
        for (before, step, look_inside) in
            (0..12).map(|case| (case & 1 == 1, case / 4, case & 2 == 2))
        {
            let bitmap = PageBitmap::new(100 * BITS * PAGE_SIZE);
            if before {
                bitmap.mark_dirty((PAGE + 1) * PAGE_SIZE, 1);
            }
            let reported = RefCell::new(Vec::new());
            let at = Cell::new(0);
            let once = |action: &dyn Fn()| {
                if at.replace(at.get() + 1) == step {
                    action();
                }
            };
            let look = || reported.borrow_mut().extend(taken(&bitmap));
            if look_inside {
                bitmap.mark_in_steps(PAGE / BITS, 1 << (PAGE % BITS), || once(&look));
            } else {
                let mark = || bitmap.mark_dirty(PAGE * PAGE_SIZE, 1);
                let found = |index, bits| {
                    reported.borrow_mut().extend(pages(index, bits));
                    once(&mark);
                };
                bitmap.take_in_steps(found, || once(&mark));
                if at.get() <= step {
                    mark();
                }
            }
            look();
            let count =
                |page| reported.borrow().iter().filter(|&&reported| reported == page).count();
            assert_eq!(count(PAGE), 1, "{before} {step} {look_inside}");
            assert_eq!(count(PAGE + 1), usize::from(before));
        }
    }

    /// P8: writers mark each page once, at the same time in the same words, while a taker takes all
    /// the time. No page is marked twice, so no later mark hides a lost one.
    #[test]
    fn p8_marks_made_while_another_thread_takes_are_each_told_once() {
        const WRITERS: usize = 3;
        const PAGES: usize = WRITERS * 400_000;
        let bitmap = PageBitmap::new(PAGES * PAGE_SIZE);
        let running = AtomicUsize::new(WRITERS);
        // Keep the writers in the same words.
        let together = Barrier::new(WRITERS);
        let mark = |writer: usize| {
            for page in (writer..PAGES).step_by(WRITERS) {
                if (page / WRITERS).is_multiple_of(1024) {
                    together.wait();
                }
                bitmap.mark_dirty(page * PAGE_SIZE, 1);
            }
            running.fetch_sub(1, Ordering::Release);
        };
        let mut reported = vec![0_u8; PAGES];
        let mut look =
            || bitmap.take(|index, bits| pages(index, bits).for_each(|page| reported[page] += 1));
        thread::scope(|scope| {
            let mark = &mark;
            for writer in 0..WRITERS {
                scope.spawn(move || mark(writer));
            }
            while running.load(Ordering::Acquire) > 0 {
                look();
            }
        });
        // All marks are made: one more take must find the rest.
        look();
        let wrong: Vec<_> = reported.iter().enumerate().filter(|&(_, &times)| times != 1).collect();
        assert!(
            wrong.is_empty(),
            "{} pages, and how often they were told: {:?}",
            wrong.len(),
            wrong.first()
        );
    }
}
