//! The sender's side of a session's link: it encodes frames, adds them to the digest of the epoch,
//! and writes them in large pieces.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use ft_core::pages::{Compression, FRAME_PAGES, PAGE_SIZE, PageFrame, PageFrames, SentPages};
use ft_core::wire::{Data, EpochDigest, Header, Kind, Message, Outgoing};
use ft_core::{Epoch, LinkId, Term};

use super::Engine;
use super::item::{Checkpoint, Item};
use super::live::SPARE_BYTES;
use super::outbox::{MAX_FRAMES, Next, Outbox};
use crate::link::Link;

/// Bytes per write of the link: a large write saves system calls.
const FLUSH_AT: usize = FRAME_PAGES as usize * PAGE_SIZE;

/// The error when a standby reads nothing (P9).
pub(super) fn overfull() -> io::Error {
    io::Error::other(format!(
        "the standby has not accepted {MAX_FRAMES} messages: its session ends"
    ))
}

/// The link, and the bytes that are buffered for it.
pub(super) struct Output {
    link: Link,
    buffer: Vec<u8>,
    digest: EpochDigest,
    /// The cache of the pages sent in this session's checkpoints.
    sent_pages: SentPages,
    sent: u64,
    /// The encoded sign of life. P7: the sender thread sends it, and that thread takes no lock
    /// under which another thread blocks.
    sign: Option<Vec<u8>>,
}

impl Output {
    /// The output of a session that begins.
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            buffer: Vec::new(),
            digest: EpochDigest::default(),
            sent_pages: SentPages::new(0),
            sent: 0,
            sign: None,
        }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Begins the session that the standby calls `session`. `sign` is its sign of life. The cache
    /// of sent pages holds `delta_pages` pages.
    pub(super) fn begin(&mut self, session: u64, sign: Option<Vec<u8>>, delta_pages: usize) {
        self.sign = sign;
        self.digest = EpochDigest::new(session);
        self.sent_pages = SentPages::new(delta_pages);
    }

    /// Sets the time limit of a write.
    pub(super) fn set_write_timeout(&self, limit: Duration) -> io::Result<()> {
        self.link.set_write_timeout(Some(limit))
    }

    /// Sends the control frames that were queued in the meantime. Returns `false` when the session
    /// has ended.
    pub(super) fn interleave(&mut self, items: &Outbox) -> io::Result<bool> {
        loop {
            match items.next_control() {
                Next::Item(Item::Control(frame) | Item::Sign(frame)) => self.write_frame(&frame)?,
                Next::Item(Item::RotateKeys(tell)) => self.rotate_keys(&tell)?,
                Next::Item(_) => unreachable!("a checkpoint stays where it is until it is sent"),
                Next::Quiet => return Ok(true),
                Next::Closed => return Ok(false),
                Next::Overfull => return Err(overfull()),
            }
        }
    }

    pub(super) fn give_sign(&mut self) -> io::Result<()> {
        self.sign.as_ref().map_or(Ok(()), |sign| self.link.write_all(sign))
    }

    pub(super) fn write_frame(&mut self, frame: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.link.write_all(frame)
    }

    pub(super) fn rotate_keys(&mut self, tell: &SyncSender<Result<(), String>>) -> io::Result<()> {
        let rotated = self.link.rotate_keys();
        // The requester may have gone, and this thread must not block.
        let _ = tell.try_send(rotated.as_ref().copied().map_err(ToString::to_string));
        rotated?;
        log::info!("the link has new keys");
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.link.write_all(&self.buffer)?;
        self.sent += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn checkpoint(
        &mut self,
        engine: &Arc<Engine>,
        link: LinkId,
        checkpoint: Checkpoint,
        items: &Outbox,
    ) -> io::Result<()> {
        let begun = Instant::now();
        self.sent = 0;
        let copied = checkpoint.copied();
        let Checkpoint { epoch, term, page_numbers, mut pages, state, hashes } = checkpoint;
        assert!(pages.pages() == page_numbers.len() as u64, "P4: a page for every number");
        self.flush()?;
        self.checkpoint_pages((epoch, term), &mut pages)?;
        if pages.capacity() > SPARE_BYTES {
            // P9: free the pages now. The next epoch may be as large, and is copied as soon as
            // there is room.
            pages = PageFrames::default();
        }
        items.pages_sent(copied);
        self.data(epoch, term, Message::State(Data(state)))?;
        let end = Message::End(self.digest.end(epoch, hashes));
        Outgoing { epoch, term, message: end }
            .encode(&mut self.buffer)
            .map_err(io::Error::other)?;
        self.flush()?;
        if let Ok(mut live) = engine.live(link) {
            live.sent(self.sent, begun.elapsed(), page_numbers, pages);
        }
        Ok(())
    }

    fn checkpoint_pages(
        &mut self,
        (epoch, term): (Epoch, Term),
        pages: &mut PageFrames,
    ) -> io::Result<()> {
        let Self { link, buffer, digest, sent_pages, sent, sign: _ } = self;
        let mut write = |bytes: &[u8]| {
            *sent += bytes.len() as u64;
            link.write_all(bytes)
        };
        if !sent_pages.begin_checkpoint() {
            return pages.finish_each(epoch, term, |header, count, bytes| {
                digest.add(header, count);
                write(bytes)
            });
        }
        pages.finish_changes(sent_pages, (epoch, term), buffer, |header, count, buffer| {
            digest.add(header, count);
            if buffer.len() < FLUSH_AT {
                return Ok(());
            }
            write(buffer)?;
            buffer.clear();
            Ok(())
        })
    }

    pub(super) fn data(&mut self, epoch: Epoch, term: Term, message: Message) -> io::Result<()> {
        let header =
            Outgoing { epoch, term, message }.encode(&mut self.buffer).map_err(io::Error::other)?;
        self.digest.add(&header, 0);
        Ok(())
    }

    /// Sends pages. `push` puts the next page, in ascending order, into a frame. It returns `false`
    /// when there is none.
    pub(super) fn pages(
        &mut self,
        kind: Kind,
        epoch: Epoch,
        term: Term,
        mut push: impl FnMut(&mut PageFrame<'_>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let mut more = true;
        while more {
            let start = self.buffer.len();
            let mut frame =
                PageFrame::begin(&mut self.buffer, kind, epoch, term, Compression::None);
            while more && frame.pages() < FRAME_PAGES && !frame.is_full() {
                more = push(&mut frame)?;
            }
            let pages = frame.pages();
            if pages == 0 {
                // The frame before this one was full when the pages ended: drop this empty one.
                self.buffer.truncate(start);
                break;
            }
            let header: Header = frame.finish().map_err(io::Error::other)?;
            self.digest.add(&header, pages);
            if self.buffer.len() >= FLUSH_AT {
                self.flush()?;
            }
        }
        Ok(())
    }
}
