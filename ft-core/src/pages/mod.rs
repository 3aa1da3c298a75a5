//! Batches of guest pages: the body of `Bulk` and `Pages` frames.
//!
//! For each page there is a little-endian `u64`: its guest address, with the encoding in the low 12
//! bits. Then follow bytes according to the encoding:
//!
//! | encoding | is | bytes that follow |
//! | --- | --- | --- |
//! | 0 | raw | 4096 |
//! | 1 | zero | none |
//! | 2 | LZ4 block | `u16` length, then that many |
//! | 3 | changed lines of 64 bytes | `u64` with a bit for each line that follows, the lowest for the first; then these lines |
//!
//! Addresses ascend, and each is of a page in guest memory. The lines of a page that are not sent
//! are as the checkpoint before has left them. So `Bulk` frames, which precede all checkpoints,
//! have no changed lines.

mod frames;
mod sent;

use alloc::vec::Vec;
use core::ops::Range;

use io_gate::host::{Epoch, Term};

use crate::handshake::MemoryRegion;
use crate::wire::{Header, Kind, WireError};

pub use frames::{FRAME_PAGES, PageFrames};
pub use sent::{LINE, SentPages};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// The contents of a page.
pub type Page = [u8; PAGE_SIZE];

const ENTRY: usize = 8;
const RAW: u64 = 0;
const ZERO: u64 = 1;
const LZ4: u64 = 2;
const LINES: u64 = 3;

/// An LZ4 block that saves less than this does not justify its decompression.
const WORTHWHILE: usize = PAGE_SIZE * 7 / 8;
/// This many changed lines do not justify the encoding either.
const MANY_LINES: u32 = (WORTHWHILE / LINE) as u32;

/// How pages are compressed before they are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Only zero pages are left out: for links that are faster than a core can compress.
    #[default]
    None,
    /// LZ4, if it makes the page smaller.
    Lz4,
}

/// A body of pages violates the format. No part of it may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PagesError {
    /// It ends within a page.
    #[error("page {address:#x}: expected {expected} bytes, found {found} left in the frame")]
    Torn {
        /// The page, or 0 if even its address is incomplete.
        address: u64,
        /// Bytes needed.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// The page is not in guest memory.
    #[error("page {address:#x} is not in guest memory: the two machines' layouts differ")]
    Outside {
        /// The page.
        address: u64,
    },
    /// The pages are out of order, or one is repeated.
    #[error("page {address:#x} comes after page {previous:#x}: addresses must ascend")]
    Order {
        /// The page.
        address: u64,
        /// The one before.
        previous: u64,
    },
    /// The encoding is unknown.
    #[error("page {address:#x} has the unknown encoding {encoding}")]
    Encoding {
        /// The page.
        address: u64,
        /// The encoding.
        encoding: u64,
    },
    /// The compressed bytes do not give a page.
    #[error("page {address:#x} cannot be decompressed: expected 4096 bytes of content")]
    Lz4 {
        /// The page.
        address: u64,
    },
}

/// Whether all bits of a page are zero.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    // Blocks of 128 bytes let the compiler use its widest registers, and a nonzero page is mostly
    // decided by the first block.
    page.chunks_exact(128).all(|block| {
        block
            .chunks_exact(16)
            .fold(0, |bits, word| {
                bits | u128::from_ne_bytes(word.try_into().expect("the chunk has 16 bytes"))
            })
            .eq(&0)
    })
}

/// Builds one frame of pages in place, in a reused buffer. A page is copied only once, out of guest
/// memory.
#[derive(Debug)]
pub struct PageFrame<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    kind: Kind,
    epoch: Epoch,
    term: Term,
    compression: Compression,
    pages: u64,
    last: Option<u64>,
}

impl<'a> PageFrame<'a> {
    /// Begins a frame at the end of `out`; `kind` is [`Kind::Bulk`] or [`Kind::Pages`].
    ///
    /// # Panics
    /// When the kind is another one.
    pub fn begin(
        out: &'a mut Vec<u8>,
        kind: Kind,
        epoch: Epoch,
        term: Term,
        compression: Compression,
    ) -> Self {
        assert!(matches!(kind, Kind::Bulk | Kind::Pages), "{kind:?} frames carry no pages");
        let start = Header::reserve(out);
        Self { out, start, kind, epoch, term, compression, pages: 0, last: None }
    }

    /// Whether one more page might not fit. If so, finish this frame and begin the next.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let body = self.out.len() - self.start - crate::wire::HEADER_LEN;
        body + ENTRY + PAGE_SIZE > self.kind.max_body() as usize
    }

    /// Number of pages so far.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Adds the page at `address`. `fill` writes its contents into the frame.
    ///
    /// # Errors
    /// The error of `fill`. The page is then not in the frame.
    ///
    /// # Panics
    /// When the frame is full, the address is not page-aligned, or it is not above the one before.
    pub fn push<E>(
        &mut self,
        address: u64,
        fill: impl FnOnce(&mut Page) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check(address);
        let at = self.out.len();
        self.out.resize(at + ENTRY + PAGE_SIZE, 0);
        let page: &mut Page = (&mut self.out[at + ENTRY..])
            .try_into()
            .expect("the buffer was extended by an entry and a page");
        if let Err(error) = fill(page) {
            self.out.truncate(at);
            return Err(error);
        }
        self.enter(address, at);
        Ok(())
    }

    fn check(&self, address: u64) {
        assert!(!self.is_full(), "a page frame is full");
        assert!(address.is_multiple_of(PAGE_SIZE as u64), "{address:#x} is not a page's address");
        assert!(self.last.is_none_or(|last| last < address), "{address:#x} after {:?}", self.last);
    }

    /// Adds a page by the lines in which it differs from `sent`, or whole if that is shorter.
    ///
    /// # Panics
    /// As [`push`](Self::push), and when the kind is not [`Kind::Pages`].
    pub fn push_changes(&mut self, address: u64, page: &Page, sent: &mut SentPages) {
        assert!(self.kind == Kind::Pages, "P4: a page must be sent whole before its lines");
        self.check(address);
        match sent.exchange(address, page) {
            Some(lines) if lines.count_ones() < MANY_LINES => {
                self.entry(address, LINES);
                self.out.extend_from_slice(&lines.to_le_bytes());
                for line in runs(lines) {
                    self.out.extend_from_slice(&page[line]);
                }
            }
            _ => {
                self.entry(address, RAW);
                self.out.extend_from_slice(page);
            }
        }
    }

    /// Adds a page that the caller knows to be zero.
    ///
    /// # Panics
    /// As [`push`](Self::push).
    pub fn push_zero(&mut self, address: u64) {
        self.check(address);
        self.entry(address, ZERO);
    }

    fn entry(&mut self, address: u64, encoding: u64) {
        self.out.extend_from_slice(&(address | encoding).to_le_bytes());
        self.pages += 1;
        self.last = Some(address);
    }

    /// Enters the page at the end of the buffer, whose entry is at `at`, as the frame's last.
    fn enter(&mut self, address: u64, at: usize) {
        let encoding = self.shrink(at);
        self.out[at..at + ENTRY].copy_from_slice(&(address | encoding).to_le_bytes());
        self.pages += 1;
        self.last = Some(address);
    }

    /// Replaces the page at the end of the buffer by a shorter encoding, if there is one.
    fn shrink(&mut self, at: usize) -> u64 {
        let data = at + ENTRY;
        let page: &Page = (&self.out[data..]).try_into().expect("the page is last in the buffer");
        if is_zero(page) {
            self.out.truncate(data);
            return ZERO;
        }
        if self.compression == Compression::Lz4 {
            let mut block = [0; lz4_flex::block::get_maximum_output_size(PAGE_SIZE)];
            if let Ok(len) = lz4_flex::block::compress_into(page, &mut block)
                && len < WORTHWHILE
            {
                self.out.truncate(data);
                let prefix = u16::try_from(len).expect("shorter than a page");
                self.out.extend_from_slice(&prefix.to_le_bytes());
                self.out.extend_from_slice(&block[..len]);
                return LZ4;
            }
        }
        RAW
    }

    /// Ends the frame: the bytes appended to the buffer are ready to send.
    ///
    /// # Errors
    /// Does not occur: [`push`](Self::push) keeps within the limit.
    pub fn finish(self) -> Result<Header, WireError> {
        Header::finish(self.out, self.start, self.kind, self.epoch, self.term)
    }
}

/// A body of pages that has been checked completely, compressed pages included: it can be applied
/// (P4).
#[derive(Clone, Copy, Debug)]
pub struct PageBatch<'a> {
    body: &'a [u8],
    pages: u64,
    changes: u64,
}

impl<'a> PageBatch<'a> {
    /// Checks a body against the layout of guest memory.
    ///
    /// # Errors
    /// When any part of it violates the format.
    pub fn parse(body: &'a [u8], memory: &[MemoryRegion]) -> Result<Self, PagesError> {
        let mut rest = body;
        let (mut pages, mut changes) = (0, 0);
        let mut previous = None;
        let mut region = 0;
        let mut scratch = [0; PAGE_SIZE];
        while !rest.is_empty() {
            let (address, contents) = split(&mut rest)?;
            if let Some(previous) = previous.filter(|previous| *previous >= address) {
                return Err(PagesError::Order { address, previous });
            }
            // Addresses and regions both ascend: walk over both at once.
            while memory.get(region).is_some_and(|region| is_past(region, address)) {
                region += 1;
            }
            if !memory.get(region).is_some_and(|region| contains(region, address)) {
                return Err(PagesError::Outside { address });
            }
            match contents {
                Contents::Lz4(block) => {
                    decompress(block, &mut scratch).ok_or(PagesError::Lz4 { address })?;
                }
                Contents::Lines { .. } => changes += 1,
                Contents::Raw(_) | Contents::Zero => {}
            }
            previous = Some(address);
            pages += 1;
        }
        Ok(Self { body, pages, changes })
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Number of pages that are sent as changed lines.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Calls `write` with each address and the bytes to write there, in order: a page, or ranges of
    /// its lines.
    ///
    /// # Errors
    /// The first error of `write`. The rest is then not passed.
    pub fn for_each_piece<E>(
        &self,
        write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        each_piece(self.body, write)
    }
}

/// See [`PageBatch::for_each_piece`]. [`PageBatch::parse`] has accepted `body`.
pub(crate) fn each_piece<E>(
    body: &[u8],
    mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = body;
    let mut scratch = [0; PAGE_SIZE];
    while !rest.is_empty() {
        let (address, contents) = split(&mut rest).expect("checked by parse");
        match contents {
            Contents::Raw(page) => write(address, page)?,
            Contents::Zero => write(address, &[0; PAGE_SIZE])?,
            Contents::Lz4(block) => {
                decompress(block, &mut scratch).expect("checked by parse");
                write(address, &scratch)?;
            }
            Contents::Lines { lines, mut bytes } => {
                for run in runs(lines) {
                    let (piece, after) = bytes.split_at(run.len());
                    write(address + run.start as u64, piece)?;
                    bytes = after;
                }
            }
        }
    }
    Ok(())
}

/// The byte range within the page of each run of set bits, in ascending order.
fn runs(mut lines: u64) -> impl Iterator<Item = Range<usize>> {
    core::iter::from_fn(move || {
        if lines == 0 {
            return None;
        }
        let first = lines.trailing_zeros();
        let count = (!(lines >> first)).trailing_zeros();
        let end = first + count;
        lines &= u64::MAX.checked_shl(end).unwrap_or(0);
        Some(first as usize * LINE..end as usize * LINE)
    })
}

enum Contents<'a> {
    Raw(&'a Page),
    Zero,
    Lz4(&'a [u8]),
    Lines { lines: u64, bytes: &'a [u8] },
}

fn split<'a>(rest: &mut &'a [u8]) -> Result<(u64, Contents<'a>), PagesError> {
    let word = take(rest, ENTRY, 0)?;
    let word = u64::from_le_bytes(word.try_into().expect("eight bytes were taken"));
    let encoding = word % PAGE_SIZE as u64;
    let address = word - encoding;
    let contents = match encoding {
        RAW => {
            let page = take(rest, PAGE_SIZE, address)?;
            Contents::Raw(page.try_into().expect("a page's bytes were taken"))
        }
        ZERO => Contents::Zero,
        LZ4 => {
            let len = take(rest, 2, address)?;
            let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
            Contents::Lz4(take(rest, len, address)?)
        }
        LINES => {
            let lines = take(rest, size_of::<u64>(), address)?;
            let lines = u64::from_le_bytes(lines.try_into().expect("eight bytes were taken"));
            let bytes = take(rest, lines.count_ones() as usize * LINE, address)?;
            Contents::Lines { lines, bytes }
        }
        _ => return Err(PagesError::Encoding { address, encoding }),
    };
    Ok((address, contents))
}

fn take<'a>(rest: &mut &'a [u8], len: usize, address: u64) -> Result<&'a [u8], PagesError> {
    let found = rest.len();
    let (taken, after) =
        rest.split_at_checked(len).ok_or(PagesError::Torn { address, expected: len, found })?;
    *rest = after;
    Ok(taken)
}

fn is_past(region: &MemoryRegion, address: u64) -> bool {
    region.start.saturating_add(region.len) <= address
}

fn contains(region: &MemoryRegion, address: u64) -> bool {
    address.checked_sub(region.start).is_some_and(|offset| {
        region.len >= PAGE_SIZE as u64 && offset <= region.len - PAGE_SIZE as u64
    })
}

fn decompress(block: &[u8], page: &mut Page) -> Option<()> {
    let len = lz4_flex::block::decompress_into(block, page).ok()?;
    (len == PAGE_SIZE).then_some(())
}

#[cfg(test)]
mod tests;
