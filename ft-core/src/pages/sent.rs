//! The pages as the other side has them, so that only the lines of a page that changed since are
//! sent.

use alloc::vec;
use alloc::vec::Vec;

use super::{PAGE_SIZE, Page};

/// Size of a line in bytes: a page has as many lines as a `u64` has bits.
pub const LINE: usize = PAGE_SIZE / u64::BITS as usize;

/// Pages as they were last sent in one session, for as many pages of the guest as there is room
/// for.
///
/// P4: a page in here is what the other side has once it has applied everything sent in this
/// session. So it is empty at the start of each session, it records every page of a checkpoint, and
/// a recorded checkpoint is sent, or the session ends.
#[derive(Debug)]
pub struct SentPages {
    /// Each page has one place: its number modulo the number of places. The bytes start as zeros,
    /// for which the system provides memory only on the first write, so pages that the guest never
    /// writes take no memory here.
    pages: Vec<u8>,
    /// For each place the number of its page plus one; 0 if it is empty.
    held: Vec<u64>,
    worth: Worth,
}

impl SentPages {
    /// With room for this many pages; 0 means that every page is sent whole.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self { pages: vec![0; pages * PAGE_SIZE], held: vec![0; pages], worth: Worth::default() }
    }

    /// Begins a checkpoint. Returns whether its pages are to be compared, and passed to
    /// [`exchange`](Self::exchange) and [`forget`](Self::forget). Otherwise they are sent whole,
    /// and the recorded pages are cleared. For a guest that rewrites whole pages, or never the same
    /// ones, comparing is tried only at long intervals.
    pub fn begin_checkpoint(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        match self.worth.next() {
            Next::Compare => true,
            Next::Whole => false,
            Next::BeginRest => {
                self.held.fill(0);
                false
            }
        }
    }

    /// Records the page at `address` as it is sent now. Returns a bit for each line that differs
    /// from the last copy sent, the lowest bit for the first line; `None` if no copy is recorded.
    pub(super) fn exchange(&mut self, address: u64, page: &Page) -> Option<u64> {
        let (at, name) = self.place(address);
        let known = core::mem::replace(&mut self.held[at], name) == name;
        let kept = &mut self.pages.as_chunks_mut::<PAGE_SIZE>().0[at];
        let changed = known.then(|| take_changes(kept, page));
        if !known {
            *kept = *page;
        }
        self.worth.note(changed);
        changed
    }

    /// The page at `address` is sent in another form: drops the recorded copy.
    pub(super) fn forget(&mut self, address: u64) {
        let (at, name) = self.place(address);
        if self.held[at] == name {
            self.held[at] = 0;
        }
    }

    fn place(&self, address: u64) -> (usize, u64) {
        let number = address / PAGE_SIZE as u64;
        ((number % self.held.len() as u64) as usize, number + 1)
    }
}

/// Makes `kept` equal to `page`, and returns the lines that differed.
fn take_changes(kept: &mut Page, page: &Page) -> u64 {
    let (kept, page) = (kept.as_chunks_mut::<LINE>().0, page.as_chunks::<LINE>().0);
    let mut changed = 0;
    for (at, (kept, line)) in kept.iter_mut().zip(page).enumerate() {
        if differ(kept, line) {
            *kept = *line;
            changed |= 1 << at;
        }
    }
    changed
}

/// No branch before the end, so that the compiler can use its widest registers.
fn differ(a: &[u8; LINE], b: &[u8; LINE]) -> bool {
    let (a, b) = (a.as_chunks::<16>().0, b.as_chunks::<16>().0);
    let bits = a
        .iter()
        .zip(b)
        .fold(0, |bits, (a, b)| bits | (u128::from_ne_bytes(*a) ^ u128::from_ne_bytes(*b)));
    bits != 0
}

/// Decides whether comparing is worthwhile: recent savings against its cost.
#[derive(Debug)]
struct Worth {
    /// Checkpoints compared since the last decision.
    checkpoints: u32,
    /// Pages compared since then, including those without a recorded copy.
    pages: u64,
    /// Lines of these pages that need not be sent.
    saved: u64,
    /// Checkpoints to send whole before the next try.
    rest: u32,
    /// Length of the next rest, in checkpoints.
    next_rest: u32,
}

/// How to send a checkpoint.
enum Next {
    Compare,
    Whole,
    BeginRest,
}

impl Worth {
    /// Number of checkpoints that are judged together. In the first one after a rest no page has a
    /// recorded copy.
    const TRIED: u32 = 9;
    const FIRST_REST: u32 = 32;
    const LONGEST_REST: u32 = 1024;
    /// Comparing and keeping a page costs less than a third of sending it over loopback.
    const WORTHWHILE: u64 = 3;

    fn next(&mut self) -> Next {
        if self.rest > 0 {
            self.rest -= 1;
            return Next::Whole;
        }
        if self.checkpoints < Self::TRIED {
            self.checkpoints += 1;
            return Next::Compare;
        }
        let worthwhile = self.saved * Self::WORTHWHILE >= self.pages * u64::from(u64::BITS);
        let next_rest = self.next_rest;
        *self = Self { checkpoints: 1, ..Self::default() };
        if worthwhile {
            return Next::Compare;
        }
        self.checkpoints = 0;
        self.rest = next_rest - 1;
        self.next_rest = (next_rest * 2).min(Self::LONGEST_REST);
        Next::BeginRest
    }

    fn note(&mut self, changed: Option<u64>) {
        self.pages += 1;
        self.saved += changed.map_or(0, |changed| u64::from(changed.count_zeros()));
    }
}

impl Default for Worth {
    fn default() -> Self {
        Self { checkpoints: 0, pages: 0, saved: 0, rest: 0, next_rest: Self::FIRST_REST }
    }
}

#[cfg(test)]
mod tests;
