//! Page frames that are filled while the guest is paused, and finished when they are sent.

use alloc::vec::Vec;

use io_gate::host::{Epoch, Term};

use super::{
    Compression, Contents, ENTRY, PAGE_SIZE, Page, PageFrame, RAW, SentPages, ZERO, is_zero, split,
};
use crate::wire::{HEADER_LEN, Header, Kind};

/// The most pages in a frame. While one frame is sent, the checksum of the next is computed and the
/// one before is checked.
pub const FRAME_PAGES: u64 = 64;

/// The [`Kind::Pages`] frames of one checkpoint. A page is copied once, from guest memory to where
/// it is sent from. The buffer is reused.
#[derive(Debug, Default)]
pub struct PageFrames {
    /// Bytes after `end` are from an earlier use.
    bytes: Vec<u8>,
    end: usize,
    frames: Vec<Span>,
    last: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    pages: u64,
}

impl PageFrames {
    /// Starts over, with room for this many pages.
    pub fn begin(&mut self, pages: usize) {
        self.end = 0;
        self.frames.clear();
        self.last = None;
        let frames = pages.div_ceil(FRAME_PAGES as usize);
        let most = frames * HEADER_LEN + pages * (ENTRY + PAGE_SIZE);
        if self.bytes.len() < most {
            self.bytes.resize(most, 0);
        }
    }

    /// Adds the page at `address`. `fill` writes its contents. A zero page takes no room.
    ///
    /// # Errors
    /// The error of `fill`. The page is then not in the frames.
    ///
    /// # Panics
    /// When the reserved room is used up, the address is not page-aligned, or it is not above the
    /// one before.
    pub fn push<E>(
        &mut self,
        address: u64,
        fill: impl FnOnce(&mut Page) -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(address.is_multiple_of(PAGE_SIZE as u64), "{address:#x} is not a page's address");
        assert!(self.last.is_none_or(|last| last < address), "{address:#x} after {:?}", self.last);
        let begins = self.frames.last().is_none_or(|frame| frame.pages == FRAME_PAGES);
        let at = self.end + if begins { HEADER_LEN } else { 0 };
        let (entry, rest) = self.bytes[at..].split_at_mut(ENTRY);
        let page = rest.first_chunk_mut().expect("there is room for the requested pages");
        fill(page)?;
        let (encoding, len) = if is_zero(page) { (ZERO, 0) } else { (RAW, PAGE_SIZE) };
        entry.copy_from_slice(&(address | encoding).to_le_bytes());
        if begins {
            self.frames.push(Span { start: self.end, pages: 0 });
        }
        self.end = at + ENTRY + len;
        self.last = Some(address);
        self.frames.last_mut().expect("one has begun").pages += 1;
        Ok(())
    }

    /// Makes the headers, and calls `each` with each frame and its number of pages, in order.
    ///
    /// # Errors
    /// The first error of `each`.
    pub fn finish_each<E>(
        &mut self,
        epoch: Epoch,
        term: Term,
        mut each: impl FnMut(&Header, u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for index in 0..self.frames.len() {
            let frame = self.frames[index];
            let end = self.frame_end(index);
            let bytes = &mut self.bytes[frame.start..end];
            let header = Header::finish(bytes, 0, Kind::Pages, epoch, term)
                .expect("the number of pages is within the limit of their kind");
            each(&header, frame.pages, bytes)?;
        }
        Ok(())
    }

    /// As [`finish_each`](Self::finish_each), with each page as the lines in which it differs from
    /// `sent`. Each frame is built at the end of `out`, from which `each` may take it.
    ///
    /// # Errors
    /// The first error of `each`. `sent` then contains pages that were not sent, so the session
    /// must end.
    pub fn finish_changes<E>(
        &self,
        sent: &mut SentPages,
        (epoch, term): (Epoch, Term),
        out: &mut Vec<u8>,
        mut each: impl FnMut(&Header, u64, &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (index, span) in self.frames.iter().enumerate() {
            let mut rest = &self.bytes[span.start + HEADER_LEN..self.frame_end(index)];
            let mut frame = PageFrame::begin(out, Kind::Pages, epoch, term, Compression::None);
            while !rest.is_empty() {
                match split(&mut rest).expect("made by push") {
                    (address, Contents::Raw(page)) => frame.push_changes(address, page, sent),
                    (address, _) => {
                        sent.forget(address);
                        frame.push_zero(address);
                    }
                }
            }
            let header =
                frame.finish().expect("the number of pages is within the limit of their kind");
            each(&header, span.pages, out)?;
        }
        Ok(())
    }

    fn frame_end(&self, index: usize) -> usize {
        self.frames.get(index + 1).map_or(self.end, |next| next.start)
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.frames.iter().map(|frame| frame.pages).sum()
    }

    /// Bytes of memory that it keeps.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}
