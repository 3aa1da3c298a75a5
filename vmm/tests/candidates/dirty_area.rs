//! Memory with some dirty pages, and two ways to keep their content: copied during the pause, or protected during the
//! pause and copied while the guest runs.

use std::io;

use crate::PAGE;
use crate::uffd::Uffd;

/// How pages are protected and made writable again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protect {
    /// Each page by itself, writable as soon as it is copied.
    Each,
    /// All from the first dirty page to the last at once, writable when all is copied or a thread waits.
    Span,
}

/// Memory and its dirty pages.
pub(crate) struct DirtyArea {
    base: usize,
    /// The dirty pages, ascending.
    dirty: Vec<usize>,
    /// The index in `dirty`, by page number.
    places: Vec<u32>,
    copied: Vec<bool>,
    pub(crate) staged: Vec<u8>,
    uffd: Uffd,
}

impl DirtyArea {
    /// `len` bytes at `base`, all touched, which stay mapped while this lives; `dirty` pages by number, ascending.
    pub(crate) fn new(base: usize, len: usize, dirty: &[usize]) -> io::Result<Self> {
        let mut places = vec![u32::MAX; len / PAGE];
        (0..).zip(dirty).for_each(|(place, &page)| places[page] = place);
        Ok(Self {
            base,
            dirty: dirty.iter().map(|page| base + page * PAGE).collect(),
            places,
            copied: vec![false; dirty.len()],
            staged: vec![1; dirty.len() * PAGE],
            uffd: Uffd::over(base, len)?,
        })
    }

    fn copy(&mut self, place: usize) {
        let to = &mut self.staged[place * PAGE..][..PAGE];
        // SAFETY: the page is mapped while this lives, and nobody writes to it: all are paused, or it is protected.
        unsafe {
            std::ptr::copy_nonoverlapping(self.dirty[place] as *const u8, to.as_mut_ptr(), PAGE)
        };
        self.copied[place] = true;
    }

    /// What the engine does in the pause: copies the pages.
    pub(crate) fn stage(&mut self) {
        (0..self.dirty.len()).for_each(|place| self.copy(place));
    }

    fn span(&self) -> (usize, usize) {
        let (first, last) = (self.dirty[0], self.dirty[self.dirty.len() - 1]);
        (first, last + PAGE - first)
    }

    /// What it would do in the pause instead: protects the pages.
    pub(crate) fn protect(&mut self, how: Protect) {
        self.copied.fill(false);
        match how {
            Protect::Each => self.dirty.iter().for_each(|&page| self.uffd.set(page, PAGE, true)),
            Protect::Span => {
                let (start, len) = self.span();
                self.uffd.set(start, len, true);
            }
        }
    }

    /// The work that is left after the pause. Returns the indices of the dirty pages that a thread waited for.
    pub(crate) fn copy_behind(&mut self, how: Protect) -> Vec<usize> {
        let mut waited = Vec::new();
        for place in 0..self.dirty.len() {
            self.serve(&mut waited);
            if !self.copied[place] {
                self.copy(place);
                if how == Protect::Each {
                    self.uffd.set(self.dirty[place], PAGE, false);
                }
            }
        }
        if how == Protect::Span {
            let (start, len) = self.span();
            self.uffd.set(start, len, false);
        }
        waited
    }

    fn serve(&mut self, waited: &mut Vec<usize>) {
        while let Some(page) = self.uffd.waiting() {
            let place = self.places[(page - self.base) / PAGE];
            if place != u32::MAX {
                let place = place as usize;
                if !self.copied[place] {
                    self.copy(place);
                }
                waited.push(place);
            }
            self.uffd.set(page, PAGE, false);
        }
    }
}
