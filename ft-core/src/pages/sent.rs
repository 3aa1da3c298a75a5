//! What the other side holds of pages, so that of a page only the lines go to it that have changed since.

use alloc::vec;
use alloc::vec::Vec;

use super::{PAGE_SIZE, Page};

/// Bytes of a line: a page has as many as a `u64` has bits.
pub const LINE: usize = PAGE_SIZE / u64::BITS as usize;

/// Pages as they were last sent in one session, of as many pages of the guest as there is room for.
///
/// P4: what is in here is what the other side has once it has applied all that was sent to it in this session. So it begins
/// empty with each session, every page of a checkpoint is told to it, and a checkpoint that was told to it is sent, or the
/// session ends.
#[derive(Debug)]
pub struct SentPages {
    /// A page has one place: its number, modulo their count. Bytes, as the system gives those that are zero when they are
    /// first written: what the guest never writes takes no memory here.
    pages: Vec<u8>,
    /// For each place the number of the page in it, plus one; 0 for none.
    held: Vec<u64>,
    worth: Worth,
}

impl SentPages {
    /// With room for so many pages; 0: every page is sent whole.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self { pages: vec![0; pages * PAGE_SIZE], held: vec![0; pages], worth: Worth::default() }
    }

    /// Begins a checkpoint: whether its pages are to be compared with what was sent, and told to [`exchange`](Self::exchange)
    /// and [`forget`](Self::forget). Else they are sent whole, and what is in here is forgotten: a guest that rewrites its
    /// pages from end to end, or never the same ones, is tried again only now and then.
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

    /// Puts the page at `address` in here as it is sent now. Gives a bit for each of its lines that differs from what was
    /// sent last, the lowest for the first line; none when that is not known.
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

    /// The page at `address` is sent in another way: what was sent before is of no use.
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

/// Makes `kept` equal to `page`, and says which lines differed.
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

/// Without a branch before the end, so that the compiler can use its widest registers.
fn differ(a: &[u8; LINE], b: &[u8; LINE]) -> bool {
    let (a, b) = (a.as_chunks::<16>().0, b.as_chunks::<16>().0);
    let bits = a
        .iter()
        .zip(b)
        .fold(0, |bits, (a, b)| bits | (u128::from_ne_bytes(*a) ^ u128::from_ne_bytes(*b)));
    bits != 0
}

/// Whether comparing is worth its while: what it saves of late, against what it costs.
#[derive(Debug)]
struct Worth {
    /// Checkpoints compared since the last judgement.
    checkpoints: u32,
    /// Pages compared since, those included of which nothing was known.
    pages: u64,
    /// Lines of them that did not have to be sent.
    saved: u64,
    /// Checkpoints to send whole before the next try.
    rest: u32,
    /// How long the next rest is.
    next_rest: u32,
}

/// What becomes of a checkpoint.
enum Next {
    Compare,
    Whole,
    BeginRest,
}

impl Worth {
    /// So many checkpoints are judged together. In the first after a rest nothing can be known.
    const TRIED: u32 = 9;
    const FIRST_REST: u32 = 32;
    const LONGEST_REST: u32 = 1024;
    /// Comparing a page and keeping it costs less than a third of what sending it over loopback does.
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
