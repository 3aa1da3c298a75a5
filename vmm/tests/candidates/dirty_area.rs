//! Memory with some dirty pages, and two ways to keep their contents: copy them during the pause,
//! or protect them during the pause and copy them while the guest runs.

use std::io;

use crate::PAGE;
use crate::uffd::Uffd;

/// How pages are protected and made writable again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protect {
    /// Each page by itself; a page is writable as soon as it is copied.
    Each,
    /// One range from the first dirty page to the last; writable when all is copied, or when a
    /// thread waits.
    Span,
}

/// Memory and its dirty pages.
pub(crate) struct DirtyArea {
    base: usize,
    /// Addresses of the dirty pages, ascending.
    dirty: Vec<usize>,
    /// The index in `dirty` of each page number.
    places: Vec<u32>,
    copied: Vec<bool>,
    pub(crate) staged: Vec<u8>,
    uffd: Uffd,
}

impl DirtyArea {
    /// Covers `len` touched bytes at `base`, which stay mapped during this value's lifetime.
    /// `dirty` has page numbers, ascending.
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
        // SAFETY: the page is mapped during this value's lifetime, and no thread writes to it: all
        // writers are paused, or the page is protected.
        unsafe {
            std::ptr::copy_nonoverlapping(self.dirty[place] as *const u8, to.as_mut_ptr(), PAGE)
        };
        self.copied[place] = true;
    }

    /// The engine's work in the pause today: copies the pages.
    pub(crate) fn stage(&mut self) {
        (0..self.dirty.len()).for_each(|place| self.copy(place));
    }

    fn span(&self) -> (usize, usize) {
        let (first, last) = (self.dirty[0], self.dirty[self.dirty.len() - 1]);
        (first, last + PAGE - first)
    }

    /// The alternative work in the pause: protects the pages.
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

    /// The work after the pause: copies the pages. Returns the indices of the dirty pages that a
    /// thread waited for.
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
